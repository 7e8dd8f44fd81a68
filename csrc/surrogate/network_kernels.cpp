#include "surrogate/network_kernels.h"

namespace layercoop::surrogate {
namespace {

constexpr cpu::Versions<const NetworkKernels> kVersions = LAYERCOOP_VERSIONS(kNetworkKernels);

}  // namespace

const NetworkKernels& network_kernels() noexcept { return *kVersions.get(); }

}  // namespace layercoop::surrogate
