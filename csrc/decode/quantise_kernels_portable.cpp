#include "simd/floats_portable.h"

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace layercoop::decode {
namespace {

// The sign of each lane, as a bit.
LAYERCOOP_INLINE std::uint32_t signs(simd::Floats a) {
#if defined(__SSE__)
  return static_cast<std::uint32_t>(_mm_movemask_ps(a.x));
#else
  const auto bits = (simd::Int4)a.x < 0;
  return (bits[0] & 1) | (bits[1] & 2) | (bits[2] & 4) | (bits[3] & 8);
#endif
}

// Numbers to fp16 and back: one, or eight.
LAYERCOOP_INLINE float half_of(float x) { return from_half(to_half(x)); }
LAYERCOOP_INLINE void halves(float* x) {
  for (int i = 0; i < 8; ++i) x[i] = half_of(x[i]);
}

}  // namespace
}  // namespace layercoop::decode

#include "decode/quantise_kernels_impl.h"

namespace layercoop::decode {
const QuantiseKernels kQuantiseKernelsPortable = make_quantise_kernels();
}  // namespace layercoop::decode
