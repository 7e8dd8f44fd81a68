// Sixteen fp32 lanes in one AVX-512 register; floats_portable.h says what each function does.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/dispatch.h"
#include "half.h"

#define LAYERCOOP_TARGET LAYERCOOP_AVX512
#define LAYERCOOP_INLINE LAYERCOOP_TARGET __attribute__((always_inline)) inline

namespace layercoop::simd {
namespace {

using Lanes = __m512;
constexpr int kTileVectors = 4;  // 6 x 4 sums and their operands fit 32 registers

LAYERCOOP_INLINE Lanes splat(float x) { return _mm512_set1_ps(x); }
LAYERCOOP_INLINE Lanes add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
LAYERCOOP_INLINE Lanes sub(Lanes a, Lanes b) { return _mm512_sub_ps(a, b); }
LAYERCOOP_INLINE Lanes mul(Lanes a, Lanes b) { return _mm512_mul_ps(a, b); }
LAYERCOOP_INLINE Lanes div(Lanes a, Lanes b) { return _mm512_div_ps(a, b); }
LAYERCOOP_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
LAYERCOOP_INLINE Lanes larger(Lanes a, Lanes kept) { return _mm512_max_ps(a, kept); }
LAYERCOOP_INLINE Lanes at_least(Lanes x, float low) { return _mm512_max_ps(splat(low), x); }
LAYERCOOP_INLINE Lanes at_most(Lanes x, float high) { return _mm512_min_ps(splat(high), x); }
LAYERCOOP_INLINE Lanes nearest(Lanes x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LAYERCOOP_INLINE Lanes power_of_two(Lanes n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}

LAYERCOOP_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
LAYERCOOP_INLINE Lanes select_first(int n, Lanes a, Lanes b) { return _mm512_mask_blend_ps(first(n), b, a); }
LAYERCOOP_INLINE float total(Lanes x) { return _mm512_reduce_add_ps(x); }
LAYERCOOP_INLINE float largest(Lanes x) { return _mm512_reduce_max_ps(x); }

// The rounded upper halves, each in the low half of its lane.
LAYERCOOP_INLINE __m512i bf16_bits(Lanes x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_mask_blend_epi32(nan, _mm512_srli_epi32(rounded, 16), _mm512_set1_epi32(0x7fc0));
}
LAYERCOOP_INLINE Lanes widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

LAYERCOOP_INLINE Lanes load(const float* p) { return _mm512_loadu_ps(p); }
LAYERCOOP_INLINE Lanes load(const Bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
LAYERCOOP_INLINE Lanes load(const Fp16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
LAYERCOOP_INLINE Lanes load(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
LAYERCOOP_INLINE Lanes load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
LAYERCOOP_INLINE Lanes load_first(const Bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
LAYERCOOP_INLINE void store(float* p, Lanes x) { _mm512_storeu_ps(p, x); }
LAYERCOOP_INLINE void store(Bf16* p, Lanes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_bits(x)));
}
LAYERCOOP_INLINE void store(Fp16* p, Lanes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
LAYERCOOP_INLINE void store_first(float* p, int n, Lanes x) { _mm512_mask_storeu_ps(p, first(n), x); }
LAYERCOOP_INLINE void store_first(Bf16* p, int n, Lanes x) {
  _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(bf16_bits(x)));
}
LAYERCOOP_INLINE Lanes rounded(Lanes x, const float*) { return x; }
LAYERCOOP_INLINE Lanes rounded(Lanes x, const Bf16*) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(bf16_bits(x), 16));
}

}  // namespace
}  // namespace layercoop::simd
