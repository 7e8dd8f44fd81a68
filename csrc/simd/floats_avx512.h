// Vectors of floats for AVX-512: a register holds sixteen. floats_portable.h says what each function does. An including
// file whose kernels use more than LAYERCOOP_AVX512 defines LAYERCOOP_TARGET first.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/dispatch.h"
#include "half.h"

#if !defined(LAYERCOOP_TARGET)
#define LAYERCOOP_TARGET LAYERCOOP_AVX512
#endif
#define LAYERCOOP_INLINE LAYERCOOP_TARGET __attribute__((always_inline)) inline

namespace layercoop::simd {
namespace {

// Numbers of 16 bits that are the upper halves of floats.
LAYERCOOP_INLINE __m512 widened(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
LAYERCOOP_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

struct Floats {
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  __m512 x;

  Floats() = default;
  LAYERCOOP_INLINE Floats(__m512 lanes) : x(lanes) {}
  LAYERCOOP_INLINE Floats(float value) : x(_mm512_set1_ps(value)) {}

  LAYERCOOP_INLINE static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  LAYERCOOP_INLINE static Floats load(const Bf16* p) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  LAYERCOOP_INLINE static Floats load(const Fp16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  LAYERCOOP_INLINE static Floats load(const std::int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  LAYERCOOP_INLINE static Floats load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
  LAYERCOOP_INLINE static Floats load_first(const Bf16* p, int n) {
    return widened(_mm256_maskz_loadu_epi16(first_lanes(n), p));
  }
};
using Floats16 = Floats;

LAYERCOOP_INLINE Floats operator+(Floats a, Floats b) { return _mm512_add_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats operator-(Floats a, Floats b) { return _mm512_sub_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats operator*(Floats a, Floats b) { return _mm512_mul_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats operator/(Floats a, Floats b) { return _mm512_div_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a.x, b.x, c.x); }
LAYERCOOP_INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats min(Floats a, Floats b) { return _mm512_min_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats sqrt(Floats a) { return _mm512_sqrt_ps(a.x); }
LAYERCOOP_INLINE Floats round(Floats a) {
  return _mm512_roundscale_ps(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LAYERCOOP_INLINE Floats power_of_two(Floats n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.x), _mm512_set1_epi32(127)), 23));
}
LAYERCOOP_INLINE Floats scale_by_power_of_two(Floats a, Floats n) { return _mm512_scalef_ps(a.x, n.x); }
// For n in 0..16 alone.
LAYERCOOP_INLINE Floats select_first(int n, Floats a, Floats b) {
  return _mm512_mask_blend_ps(first_lanes(n), b.x, a.x);
}

LAYERCOOP_INLINE bool any_at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.x, b.x, _CMP_GE_OQ) != 0; }
LAYERCOOP_INLINE float total(Floats a) { return _mm512_reduce_add_ps(a.x); }
LAYERCOOP_INLINE float largest(Floats a) { return _mm512_reduce_max_ps(a.x); }
LAYERCOOP_INLINE void total4(Floats a, Floats b, Floats c, Floats d, float constant, float* out) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.x, b.x), _mm512_unpackhi_ps(a.x, b.x));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.x, d.x), _mm512_unpackhi_ps(c.x, d.x));
  const __m512 low = _mm512_shuffle_ps(ab, cd, 0x44);
  const __m512 quarters = _mm512_add_ps(low, _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  _mm_storeu_ps(out, _mm_add_ps(sums, _mm_set1_ps(constant)));
}

// The rounded upper halves, each in the low half of its lane.
LAYERCOOP_INLINE __m512i bf16_bits(Floats a) {
  const __m512i bits = _mm512_castps_si512(a.x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.x, a.x, _CMP_UNORD_Q);
  return _mm512_mask_blend_epi32(nan, _mm512_srli_epi32(rounded, 16), _mm512_set1_epi32(0x7fc0));
}
LAYERCOOP_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.x); }
LAYERCOOP_INLINE void store(Bf16* p, Floats a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_bits(a)));
}
LAYERCOOP_INLINE void store(Fp16* p, Floats a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.x, _MM_FROUND_TO_NEAREST_INT));
}
LAYERCOOP_INLINE void store_first(float* p, int n, Floats a) { _mm512_mask_storeu_ps(p, first_lanes(n), a.x); }
LAYERCOOP_INLINE void store_first(Bf16* p, int n, Floats a) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtepi32_epi16(bf16_bits(a)));
}
LAYERCOOP_INLINE Floats rounded(Floats a, const float*) { return a; }
LAYERCOOP_INLINE Floats rounded(Floats a, const Bf16*) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(bf16_bits(a), 16));
}

}  // namespace
}  // namespace layercoop::simd
