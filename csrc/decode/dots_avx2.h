// Dot products of packed weights for AVX2; dots_portable.h says what each function does.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/floats_avx2.h"

namespace layercoop::decode {
namespace {

using simd::Floats16;

constexpr int kFloatRows = 6;  // 6 x 2 sums and their operands fit 16 registers
constexpr int kIntRows = 4;
constexpr int float_tiles(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

LAYERCOOP_INLINE __m256i bytes_at(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

LAYERCOOP_INLINE __m256 first_of_pairs_8(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
LAYERCOOP_INLINE __m256 second_of_pairs_8(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
LAYERCOOP_INLINE Floats16 load_first_of_pairs(const std::uint8_t* p) {
  return {first_of_pairs_8(bytes_at(p)), first_of_pairs_8(bytes_at(p + 32))};
}
LAYERCOOP_INLINE Floats16 load_second_of_pairs(const std::uint8_t* p) {
  return {second_of_pairs_8(bytes_at(p)), second_of_pairs_8(bytes_at(p + 32))};
}

LAYERCOOP_INLINE void store_int8(std::int8_t* p, Floats16 a, Floats16 b) {
  // The packs work within 128-bit halves: the permutation puts the eight quarters back in order.
  const __m256i words_a = _mm256_packs_epi32(_mm256_cvtps_epi32(a.low.x), _mm256_cvtps_epi32(a.high.x));
  const __m256i words_b = _mm256_packs_epi32(_mm256_cvtps_epi32(b.low.x), _mm256_cvtps_epi32(b.high.x));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words_a, words_b), order));
}

// The same four bytes in every lane.
LAYERCOOP_INLINE __m256i four(const std::int8_t* x) {
  std::int32_t bytes;
  std::memcpy(&bytes, x, sizeof bytes);
  return _mm256_set1_epi32(bytes);
}

// A group takes so many instructions that few of its successors' loads are under way by themselves. Asking for memory
// that is not there does nothing.
template <int lines>
LAYERCOOP_INLINE void prefetch(const std::uint8_t* p) {
  constexpr int ahead = 2048;
#pragma GCC unroll 8
  for (int i = 0; i < lines; ++i) _mm_prefetch(reinterpret_cast<const char*>(p) + ahead + i * 64, _MM_HINT_T0);
}

LAYERCOOP_INLINE simd::Floats& half_of(Floats16& x, int half) { return half == 0 ? x.low : x.high; }

// maddubs takes one unsigned and one signed number, and saturates beyond 2^15: |q| * (x with the sign of q), two of
// which are at most 2 * 128 * 127.
template <int rows>
LAYERCOOP_INLINE void dots_int8(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride, const std::int32_t*,
                                std::int64_t, Floats16 (&dots)[rows]) {
  const __m256i ones = _mm256_set1_epi16(1);
  prefetch<8>(q);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256i sums[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sums[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
      const __m256i w = bytes_at(q + quad * 64 + half * 32);
      const __m256i size = _mm256_abs_epi8(w);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const __m256i signed_x = _mm256_sign_epi8(four(x + r * stride + quad * 4), w);
        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_x), ones));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) half_of(dots[r], half) = _mm256_cvtepi32_ps(sums[r]);
  }
}

// A group's sixteen products in a 16-bit lane are at most 16 * 15 * 127, below 2^15.
template <int rows>
LAYERCOOP_INLINE void dots_int4(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride,
                                Floats16 (&dots)[rows]) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  prefetch<5>(q);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256i sums[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sums[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int eight = 0; eight < 4; ++eight) {
      const __m256i bytes = bytes_at(q + eight * 64 + half * 32);
      const __m256i low = _mm256_and_si256(bytes, nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const std::int8_t* at = x + r * stride + eight * 8;
        sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(low, four(at)));
        sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(high, four(at + 4)));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) half_of(dots[r], half) = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums[r], ones));
  }
}

}  // namespace
}  // namespace layercoop::decode
