// Vectors of floats for AVX2: a register holds eight. floats_portable.h says what each function does.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/dispatch.h"
#include "half.h"

#if !defined(LAYERCOOP_TARGET)
#define LAYERCOOP_TARGET LAYERCOOP_AVX2
#endif
#define LAYERCOOP_INLINE LAYERCOOP_TARGET __attribute__((always_inline)) inline

#include "simd/pair.h"

namespace layercoop::simd {
namespace {

// Numbers of 16 bits that are the upper halves of floats.
LAYERCOOP_INLINE __m256 widened(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

struct Floats {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  __m256 x;

  Floats() = default;
  LAYERCOOP_INLINE Floats(__m256 lanes) : x(lanes) {}
  LAYERCOOP_INLINE Floats(float value) : x(_mm256_set1_ps(value)) {}

  LAYERCOOP_INLINE static Floats load(const float* p) { return _mm256_loadu_ps(p); }
  LAYERCOOP_INLINE static Floats load(const Bf16* p) {
    return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  LAYERCOOP_INLINE static Floats load(const Fp16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  LAYERCOOP_INLINE static Floats load(const std::int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
};
using Floats16 = Pair<Floats>;

LAYERCOOP_INLINE Floats operator+(Floats a, Floats b) { return _mm256_add_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats operator-(Floats a, Floats b) { return _mm256_sub_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats operator*(Floats a, Floats b) { return _mm256_mul_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats operator/(Floats a, Floats b) { return _mm256_div_ps(a.x, b.x); }
// Not for kernels whose target lacks FMA.
LAYERCOOP_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a.x, b.x, c.x); }
LAYERCOOP_INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a.x, b.x); }
LAYERCOOP_INLINE Floats sqrt(Floats a) { return _mm256_sqrt_ps(a.x); }
LAYERCOOP_INLINE Floats round(Floats a) { return _mm256_round_ps(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LAYERCOOP_INLINE Floats power_of_two(Floats n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.x), _mm256_set1_epi32(127)), 23));
}
LAYERCOOP_INLINE Floats scale_by_power_of_two(Floats a, Floats n) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(n.x), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.x), shifted));
}
LAYERCOOP_INLINE Floats select_first(int n, Floats a, Floats b) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_blendv_ps(b.x, a.x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane)));
}

LAYERCOOP_INLINE bool any_at_least(Floats a, Floats b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.x, b.x, _CMP_GE_OQ)) != 0;
}
LAYERCOOP_INLINE float total(Floats a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.x), _mm256_extractf128_ps(a.x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LAYERCOOP_INLINE float largest(Floats a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.x), _mm256_extractf128_ps(a.x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
LAYERCOOP_INLINE void total4(Floats a, Floats b, Floats c, Floats d, float constant, float* out) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a.x, b.x), _mm256_unpackhi_ps(a.x, b.x));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c.x, d.x), _mm256_unpackhi_ps(c.x, d.x));
  const __m256 halves = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  _mm_storeu_ps(out, _mm_add_ps(sums, _mm_set1_ps(constant)));
}

// The rounded upper halves, each in the low half of its lane.
LAYERCOOP_INLINE __m256i bf16_bits(Floats a) {
  const __m256i bits = _mm256_castps_si256(a.x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.x, a.x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
}
LAYERCOOP_INLINE void store(float* p, Floats a) { _mm256_storeu_ps(p, a.x); }
LAYERCOOP_INLINE void store(Bf16* p, Floats16 a) {
  // packus works within 128-bit halves: the permutation puts the four quarters back in order.
  const __m256i packed = _mm256_packus_epi32(bf16_bits(a.low), bf16_bits(a.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
LAYERCOOP_INLINE void store(Fp16* p, Floats a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.x, _MM_FROUND_TO_NEAREST_INT));
}
LAYERCOOP_INLINE Floats rounded(Floats a, const float*) { return a; }
LAYERCOOP_INLINE Floats rounded(Floats a, const Bf16*) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(bf16_bits(a), 16));
}

}  // namespace
}  // namespace layercoop::simd
