#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "simd/floats_avx2.h"

namespace layercoop::surrogate {
namespace {

using namespace simd;

// As in network_kernels_portable.cpp. e^x >= 1 + x, with both at 1 where x = 0: so the larger of the line and the
// capped exponential is the right branch.
LAYERCOOP_INLINE Floats celu_term(Floats linear, Floats factor_a, Floats factor_b, Floats scale) {
  return max(linear, min(factor_a * factor_b, scale));
}

}  // namespace
}  // namespace layercoop::surrogate

#include "surrogate/network_kernels_impl.h"

namespace layercoop::surrogate {
const NetworkKernels kNetworkKernelsAvx2 = make_network_kernels();
}  // namespace layercoop::surrogate

#endif
