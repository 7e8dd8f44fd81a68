// 8 floats in one AVX2 register. See vec_portable.h for what each operation means.
#pragma once

#include <immintrin.h>

#include "cpu/dispatch.h"

#define LAYERCOOP_TARGET LAYERCOOP_AVX2

namespace layercoop::surrogate {
namespace {

struct V {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  __m256 x;

  LAYERCOOP_AVX2 static V load(const float* p) { return {_mm256_loadu_ps(p)}; }
  LAYERCOOP_AVX2 static V fill(float value) { return {_mm256_set1_ps(value)}; }
  LAYERCOOP_AVX2 void store(float* p) const { _mm256_storeu_ps(p, x); }
};

LAYERCOOP_AVX2 inline V operator+(V a, V b) { return {_mm256_add_ps(a.x, b.x)}; }
LAYERCOOP_AVX2 inline V operator-(V a, V b) { return {_mm256_sub_ps(a.x, b.x)}; }
LAYERCOOP_AVX2 inline V operator*(V a, V b) { return {_mm256_mul_ps(a.x, b.x)}; }
LAYERCOOP_AVX2 inline V operator/(V a, V b) { return {_mm256_div_ps(a.x, b.x)}; }
LAYERCOOP_AVX2 inline V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.x, b.x, c.x)}; }
LAYERCOOP_AVX2 inline V max(V a, V b) { return {_mm256_max_ps(a.x, b.x)}; }
LAYERCOOP_AVX2 inline V min(V a, V b) { return {_mm256_min_ps(a.x, b.x)}; }

LAYERCOOP_AVX2 inline bool any_at_least(V a, V b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.x, b.x, _CMP_GE_OQ)) != 0;
}

LAYERCOOP_AVX2 inline float sum(V a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.x), _mm256_extractf128_ps(a.x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

LAYERCOOP_AVX2 inline void sum4(V a, V b, V c, V d, float constant, float* out) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a.x, b.x), _mm256_unpackhi_ps(a.x, b.x));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c.x, d.x), _mm256_unpackhi_ps(c.x, d.x));
  const __m256 halves = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  _mm_storeu_ps(out, _mm_add_ps(sums, _mm_set1_ps(constant)));
}

// e^x >= 1 + x, with both at 1 where x = 0: so the larger of the line and the capped exponential is the right branch.
LAYERCOOP_AVX2 inline V celu_term(V linear, V factor_a, V factor_b, V scale) {
  return max(linear, min(factor_a * factor_b, scale));
}

LAYERCOOP_AVX2 inline V round(V a) { return {_mm256_round_ps(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

LAYERCOOP_AVX2 inline V scale_by_power_of_two(V a, V exponent) {
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtps_epi32(exponent.x), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.x), bits))};
}

}  // namespace
}  // namespace layercoop::surrogate
