// Sixteen fp32 lanes in two AVX2 registers; floats_portable.h says what each function does.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/dispatch.h"
#include "half.h"

#define LAYERCOOP_TARGET LAYERCOOP_AVX2
#define LAYERCOOP_INLINE LAYERCOOP_TARGET __attribute__((always_inline)) inline

namespace layercoop::simd {
namespace {

struct Lanes {
  __m256 low;
  __m256 high;
};
constexpr int kTileVectors = 1;  // 6 x 2 sums and their operands fit 16 registers

LAYERCOOP_INLINE Lanes splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LAYERCOOP_INLINE Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
LAYERCOOP_INLINE Lanes sub(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
LAYERCOOP_INLINE Lanes mul(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
LAYERCOOP_INLINE Lanes div(Lanes a, Lanes b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
LAYERCOOP_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
LAYERCOOP_INLINE Lanes larger(Lanes a, Lanes kept) {
  return {_mm256_max_ps(a.low, kept.low), _mm256_max_ps(a.high, kept.high)};
}
LAYERCOOP_INLINE Lanes at_least(Lanes x, float low) {
  return {_mm256_max_ps(_mm256_set1_ps(low), x.low), _mm256_max_ps(_mm256_set1_ps(low), x.high)};
}
LAYERCOOP_INLINE Lanes at_most(Lanes x, float high) {
  return {_mm256_min_ps(_mm256_set1_ps(high), x.low), _mm256_min_ps(_mm256_set1_ps(high), x.high)};
}
LAYERCOOP_INLINE Lanes nearest(Lanes x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, mode), _mm256_round_ps(x.high, mode)};
}
LAYERCOOP_INLINE __m256 power_of_two_8(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
LAYERCOOP_INLINE Lanes power_of_two(Lanes n) { return {power_of_two_8(n.low), power_of_two_8(n.high)}; }

LAYERCOOP_INLINE __m256 lanes_below(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
}
LAYERCOOP_INLINE Lanes select_first(int n, Lanes a, Lanes b) {
  return {_mm256_blendv_ps(b.low, a.low, lanes_below(n)), _mm256_blendv_ps(b.high, a.high, lanes_below(n - 8))};
}
LAYERCOOP_INLINE float total(Lanes x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
LAYERCOOP_INLINE float largest(Lanes x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// The rounded upper halves, each in the low half of its lane.
LAYERCOOP_INLINE __m256i bf16_bits_8(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7fc0), nan);
}
LAYERCOOP_INLINE __m256 widen_8(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
LAYERCOOP_INLINE __m256 rounded_8(__m256 x) { return _mm256_castsi256_ps(_mm256_slli_epi32(bf16_bits_8(x), 16)); }

LAYERCOOP_INLINE Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LAYERCOOP_INLINE Lanes load(const Bf16* p) {
  const __m128i* halves = reinterpret_cast<const __m128i*>(p);
  return {widen_8(_mm_loadu_si128(halves)), widen_8(_mm_loadu_si128(halves + 1))};
}
LAYERCOOP_INLINE Lanes load(const Fp16* p) {
  const __m128i* halves = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
LAYERCOOP_INLINE __m256 widen_8(const std::int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
LAYERCOOP_INLINE Lanes load(const std::int8_t* p) { return {widen_8(p), widen_8(p + 8)}; }
LAYERCOOP_INLINE void store(float* p, Lanes x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
LAYERCOOP_INLINE void store(Bf16* p, Lanes x) {
  // packus works within 128-bit halves: the permutation puts the four quarters back in order.
  const __m256i packed = _mm256_packus_epi32(bf16_bits_8(x.low), bf16_bits_8(x.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
LAYERCOOP_INLINE void store(Fp16* p, Lanes x) {
  __m128i* halves = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(halves, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
}
template <typename T>
LAYERCOOP_INLINE Lanes load_first(const T* p, int n) {
  T whole[16] = {};
  std::memcpy(whole, p, static_cast<std::size_t>(n) * sizeof(T));
  return load(whole);
}
template <typename T>
LAYERCOOP_INLINE void store_first(T* p, int n, Lanes x) {
  T whole[16];
  store(whole, x);
  std::memcpy(p, whole, static_cast<std::size_t>(n) * sizeof(T));
}
LAYERCOOP_INLINE Lanes rounded(Lanes x, const float*) { return x; }
LAYERCOOP_INLINE Lanes rounded(Lanes x, const Bf16*) { return {rounded_8(x.low), rounded_8(x.high)}; }

}  // namespace
}  // namespace layercoop::simd
