#include "decode/row_kernels.h"

namespace layercoop::decode {
namespace {

constexpr cpu::Versions<const RowKernels> kVersions = LAYERCOOP_VERSIONS(kRowKernels);

}  // namespace

const RowKernels& row_kernels() noexcept { return *kVersions.get(); }

}  // namespace layercoop::decode
