#include "decode/row_kernels.h"

namespace layercoop::decode {
namespace {

#if LAYERCOOP_X86
constexpr cpu::Versions<const RowKernels> kVersions{&kRowKernelsPortable, &kRowKernelsAvx2, &kRowKernelsAvx512};
#else
constexpr cpu::Versions<const RowKernels> kVersions{&kRowKernelsPortable};
#endif

}  // namespace

const RowKernels& row_kernels() noexcept { return *kVersions.get(); }

}  // namespace layercoop::decode
