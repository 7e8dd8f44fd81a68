// 16 floats in one AVX-512 register. See vec_portable.h for what each operation means.
#pragma once

#include <immintrin.h>

#include "cpu/dispatch.h"

#define LAYERCOOP_TARGET LAYERCOOP_AVX512

namespace layercoop::surrogate {
namespace {

struct V {
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  __m512 x;

  LAYERCOOP_AVX512 static V load(const float* p) { return {_mm512_loadu_ps(p)}; }
  LAYERCOOP_AVX512 static V fill(float value) { return {_mm512_set1_ps(value)}; }
  LAYERCOOP_AVX512 void store(float* p) const { _mm512_storeu_ps(p, x); }
};

LAYERCOOP_AVX512 inline V operator+(V a, V b) { return {_mm512_add_ps(a.x, b.x)}; }
LAYERCOOP_AVX512 inline V operator-(V a, V b) { return {_mm512_sub_ps(a.x, b.x)}; }
LAYERCOOP_AVX512 inline V operator*(V a, V b) { return {_mm512_mul_ps(a.x, b.x)}; }
LAYERCOOP_AVX512 inline V operator/(V a, V b) { return {_mm512_div_ps(a.x, b.x)}; }
LAYERCOOP_AVX512 inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
LAYERCOOP_AVX512 inline V max(V a, V b) { return {_mm512_max_ps(a.x, b.x)}; }
LAYERCOOP_AVX512 inline V min(V a, V b) { return {_mm512_min_ps(a.x, b.x)}; }

LAYERCOOP_AVX512 inline bool any_at_least(V a, V b) { return _mm512_cmp_ps_mask(a.x, b.x, _CMP_GE_OQ) != 0; }

LAYERCOOP_AVX512 inline float sum(V a) { return _mm512_reduce_add_ps(a.x); }

LAYERCOOP_AVX512 inline void sum4(V a, V b, V c, V d, float constant, float* out) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.x, b.x), _mm512_unpackhi_ps(a.x, b.x));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.x, d.x), _mm512_unpackhi_ps(c.x, d.x));
  const __m512 low = _mm512_shuffle_ps(ab, cd, 0x44);
  const __m512 quarters = _mm512_add_ps(low, _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  _mm_storeu_ps(out, _mm_add_ps(sums, _mm_set1_ps(constant)));
}

// The product is taken only in the lanes that need it, where it cannot overflow.
LAYERCOOP_AVX512 inline V celu_term(V linear, V factor_a, V factor_b, V scale) {
  const __mmask16 below = _mm512_cmp_ps_mask(linear.x, scale.x, _CMP_LT_OQ);
  return {_mm512_mask_mul_ps(linear.x, below, factor_a.x, factor_b.x)};
}

LAYERCOOP_AVX512 inline V round(V a) {
  return {_mm512_roundscale_ps(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

LAYERCOOP_AVX512 inline V scale_by_power_of_two(V a, V exponent) { return {_mm512_scalef_ps(a.x, exponent.x)}; }

}  // namespace
}  // namespace layercoop::surrogate
