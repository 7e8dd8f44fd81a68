#include "cpu/dispatch.h"
#if LAYERCOOP_X86

// Fused products would find other integers than the portable version.
#define LAYERCOOP_TARGET LAYERCOOP_AVX2_UNFUSED
#include "simd/floats_avx2.h"

namespace layercoop::decode {
namespace {

// The sign of each lane, as a bit.
LAYERCOOP_INLINE std::uint32_t signs(simd::Floats a) { return static_cast<std::uint32_t>(_mm256_movemask_ps(a.x)); }

// Numbers to fp16 and back: one, or eight.
LAYERCOOP_INLINE float half_of(float x) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)));
}
LAYERCOOP_INLINE void halves(float* x) {
  const __m128i kept = _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_ps(x, _mm256_cvtph_ps(kept));
}

}  // namespace
}  // namespace layercoop::decode

#include "decode/quantise_kernels_impl.h"

namespace layercoop::decode {
const QuantiseKernels kQuantiseKernelsAvx2 = make_quantise_kernels();
}  // namespace layercoop::decode

#endif
