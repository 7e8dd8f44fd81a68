// Dot products of packed weights for AVX-512, with VNNI where the including file defines LAYERCOOP_DOTS_VNNI;
// dots_portable.h says what each function does.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/floats_avx512.h"

// What follows may use more than the lanes do; they are inlined into it.
#if defined(LAYERCOOP_DOTS_VNNI)
#undef LAYERCOOP_TARGET
#define LAYERCOOP_TARGET LAYERCOOP_AVX512_VNNI
#elif defined(LAYERCOOP_DOTS_BF16)
#undef LAYERCOOP_TARGET
#define LAYERCOOP_TARGET LAYERCOOP_AVX512_BF16
#endif

namespace layercoop::decode {
namespace {

using simd::Floats16;

constexpr int kFloatRows = 6;
constexpr int kIntRows = 6;
constexpr int float_tiles(int rows) { return rows <= 2 ? 4 : 2; }

LAYERCOOP_INLINE __m512i bytes_at(const void* p) { return _mm512_loadu_si512(p); }

LAYERCOOP_INLINE Floats16 load_first_of_pairs(const std::uint8_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(bytes_at(p), 16));
}
LAYERCOOP_INLINE Floats16 load_second_of_pairs(const std::uint8_t* p) {
  return _mm512_castsi512_ps(_mm512_and_si512(bytes_at(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
LAYERCOOP_INLINE void store_int8(std::int8_t* p, Floats16 a, Floats16 b) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.x)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(b.x)));
}

// The same four bytes in every lane.
LAYERCOOP_INLINE __m512i four(const std::int8_t* x) {
  std::int32_t bytes;
  std::memcpy(&bytes, x, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

#if defined(LAYERCOOP_DOTS_VNNI)

// The instruction takes unsigned bytes times signed ones: q + 128, and 128 times the sum of x taken off.
template <int rows>
LAYERCOOP_INLINE void dots_int8(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride,
                                const std::int32_t* x_sums, std::int64_t sums_stride, Floats16 (&dots)[rows]) {
  __m512i sums[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sums[r] = _mm512_set1_epi32(-128 * x_sums[r * sums_stride]);
#pragma GCC unroll 8
  for (int quad = 0; quad < 8; ++quad) {
    const __m512i w = _mm512_xor_si512(bytes_at(q + quad * 64), _mm512_set1_epi8(static_cast<char>(0x80)));
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sums[r] = _mm512_dpbusd_epi32(sums[r], w, four(x + r * stride + quad * 4));
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) dots[r] = _mm512_cvtepi32_ps(sums[r]);
}

template <int rows>
LAYERCOOP_INLINE void dots_int4(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride,
                                Floats16 (&dots)[rows]) {
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  __m512i sums[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sums[r] = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int eight = 0; eight < 4; ++eight) {
    const __m512i bytes = bytes_at(q + eight * 64);
    const __m512i low = _mm512_and_si512(bytes, nibble);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const std::int8_t* at = x + r * stride + eight * 8;
      sums[r] = _mm512_dpbusd_epi32(sums[r], low, four(at));
      sums[r] = _mm512_dpbusd_epi32(sums[r], high, four(at + 4));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) dots[r] = _mm512_cvtepi32_ps(sums[r]);
}

#else

// As in dots_avx2.h: maddubs takes |q| and x with the sign of q.
template <int rows>
LAYERCOOP_INLINE void dots_int8(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride, const std::int32_t*,
                                std::int64_t, Floats16 (&dots)[rows]) {
  const __m512i ones = _mm512_set1_epi16(1);
  __m512i sums[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sums[r] = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int quad = 0; quad < 8; ++quad) {
    const __m512i w = bytes_at(q + quad * 64);
    const __mmask64 negative = _mm512_movepi8_mask(w);
    const __m512i size = _mm512_abs_epi8(w);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const __m512i plain = four(x + r * stride + quad * 4);
      const __m512i signed_x = _mm512_mask_sub_epi8(plain, negative, _mm512_setzero_si512(), plain);
      sums[r] = _mm512_add_epi32(sums[r], _mm512_madd_epi16(_mm512_maddubs_epi16(size, signed_x), ones));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) dots[r] = _mm512_cvtepi32_ps(sums[r]);
}

template <int rows>
LAYERCOOP_INLINE void dots_int4(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride,
                                Floats16 (&dots)[rows]) {
  const __m512i ones = _mm512_set1_epi16(1);
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  __m512i sums[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sums[r] = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int eight = 0; eight < 4; ++eight) {
    const __m512i bytes = bytes_at(q + eight * 64);
    const __m512i low = _mm512_and_si512(bytes, nibble);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const std::int8_t* at = x + r * stride + eight * 8;
      sums[r] = _mm512_add_epi16(sums[r], _mm512_maddubs_epi16(low, four(at)));
      sums[r] = _mm512_add_epi16(sums[r], _mm512_maddubs_epi16(high, four(at + 4)));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) dots[r] = _mm512_cvtepi32_ps(_mm512_madd_epi16(sums[r], ones));
}

#endif

}  // namespace
}  // namespace layercoop::decode
