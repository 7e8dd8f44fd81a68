#include "surrogate/network_kernels.h"

namespace layercoop::surrogate {

const NetworkKernels& network_kernels() noexcept {
#if LAYERCOOP_X86
  constexpr cpu::Versions<const NetworkKernels> versions{&kNetworkKernelsPortable, &kNetworkKernelsAvx2,
                                                         &kNetworkKernelsAvx512};
#else
  constexpr cpu::Versions<const NetworkKernels> versions{&kNetworkKernelsPortable};
#endif
  return *versions.get();
}

}  // namespace layercoop::surrogate
