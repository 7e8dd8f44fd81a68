#include "cpu/dispatch.h"
#if LAYERCOOP_ARM

#include "simd/floats_neon.h"

namespace layercoop::surrogate {
namespace {

using namespace simd;

// As in network_kernels_avx2.cpp; no operand is NaN.
LAYERCOOP_INLINE Floats celu_term(Floats linear, Floats factor_a, Floats factor_b, Floats scale) {
  return vmaxq_f32(linear.x, vminq_f32(vmulq_f32(factor_a.x, factor_b.x), scale.x));
}

}  // namespace
}  // namespace layercoop::surrogate

#include "surrogate/network_kernels_impl.h"

namespace layercoop::surrogate {
const NetworkKernels kNetworkKernelsNeon = make_network_kernels();
}  // namespace layercoop::surrogate

#endif
