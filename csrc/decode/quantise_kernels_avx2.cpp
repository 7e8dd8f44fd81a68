#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include <immintrin.h>

// Without FMA: a fused product would make other integers than those of the portable version.
#define LAYERCOOP_TARGET __attribute__((target("avx2,f16c,popcnt")))

#include "decode/quantise_lanes.h"

namespace layercoop::decode {
namespace {

using Part = float __attribute__((vector_size(32)));
using Bits = std::uint32_t __attribute__((vector_size(32)));
constexpr int kPart = 8;
using Values = Part[kGroup / kPart];

LAYERCOOP_INLINE std::uint32_t signs(Bits mask) { return static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)mask)); }

LAYERCOOP_INLINE Part smaller(Part x, Part y) { return _mm256_min_ps(x, y); }
LAYERCOOP_INLINE Part larger(Part x, Part y) { return _mm256_max_ps(x, y); }

// Numbers to fp16 and back: one, or eight.
LAYERCOOP_INLINE float half_of(float x) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)));
}
LAYERCOOP_INLINE void halves(float* x) {
  const __m128i kept = _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_ps(x, _mm256_cvtph_ps(kept));
}

LAYERCOOP_INLINE float sum(const Values& x) {
  const __m256 both = (x[0] + x[2]) + (x[1] + x[3]);
  const __m128 four = _mm256_castps256_ps128(both) + _mm256_extractf128_ps(both, 1);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace
}  // namespace layercoop::decode

#include "decode/grids_impl.h"

namespace layercoop::decode {
const QuantiseKernels kQuantiseKernelsAvx2 = make_quantise_kernels();
}  // namespace layercoop::decode

#endif
