#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "simd/floats_avx512.h"

namespace layercoop::surrogate {
namespace {

using namespace simd;

// As in network_kernels_portable.cpp. The product is taken only in the lanes that need it, where it cannot overflow.
LAYERCOOP_INLINE Floats celu_term(Floats linear, Floats factor_a, Floats factor_b, Floats scale) {
  const __mmask16 below = _mm512_cmp_ps_mask(linear.x, scale.x, _CMP_LT_OQ);
  return _mm512_mask_mul_ps(linear.x, below, factor_a.x, factor_b.x);
}

}  // namespace
}  // namespace layercoop::surrogate

#include "surrogate/network_kernels_impl.h"

namespace layercoop::surrogate {
const NetworkKernels kNetworkKernelsAvx512 = make_network_kernels();
}  // namespace layercoop::surrogate

#endif
