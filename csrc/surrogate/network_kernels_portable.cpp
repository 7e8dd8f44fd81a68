#include "simd/floats_portable.h"

namespace layercoop::surrogate {
namespace {

using namespace simd;

// s * (CELU(x) + 1) for s > 0, given linear = s * (x + 1) and factor_a * factor_b = s * e^x, which may be infinite
// where x > 0.
LAYERCOOP_INLINE Floats celu_term(Floats linear, Floats factor_a, Floats factor_b, Floats scale) {
  const Floats curve = factor_a * factor_b;
  return linear.x < scale.x ? curve.x : linear.x;
}

}  // namespace
}  // namespace layercoop::surrogate

#include "surrogate/network_kernels_impl.h"

namespace layercoop::surrogate {
const NetworkKernels kNetworkKernelsPortable = make_network_kernels();
}  // namespace layercoop::surrogate
