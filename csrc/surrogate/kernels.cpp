#include "surrogate/kernels.h"

namespace layercoop::surrogate {

const Kernels& kernels() noexcept {
#if LAYERCOOP_X86
  constexpr cpu::Versions<const Kernels> versions{&kPortable, &kAvx2, &kAvx512};
#else
  constexpr cpu::Versions<const Kernels> versions{&kPortable};
#endif
  return *versions.get();
}

}  // namespace layercoop::surrogate
