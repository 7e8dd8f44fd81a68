// Dot products of packed weights for AVX2; dots_portable.h says what each function does.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/floats_avx2.h"

namespace layercoop::decode {
namespace {

using simd::Floats;
using simd::Floats16;

constexpr int kFloatRows = 6;  // 6 x 2 sums and their operands fit 16 registers
constexpr int kWidenedRows = 4;
constexpr int kIntRows = 6;
constexpr int float_tiles(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
// A single row waits for memory, which answers two streams of reads faster than one.
constexpr int int8_tiles(int rows) { return rows == 1 ? 2 : 1; }

using Bytes = __m256i;
constexpr int kParts = 2;

LAYERCOOP_INLINE Bytes bytes_at(const void* p) { return _mm256_loadu_si256(static_cast<const Bytes*>(p)); }
LAYERCOOP_INLINE Floats& part_of(Floats16& x, int part) { return part == 0 ? x.low : x.high; }

LAYERCOOP_INLINE Floats first_of_pairs(Bytes pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
LAYERCOOP_INLINE Floats second_of_pairs(Bytes pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
LAYERCOOP_INLINE Floats16 load_first_of_pairs(const std::uint8_t* p) {
  return {first_of_pairs(bytes_at(p)), first_of_pairs(bytes_at(p + 32))};
}
LAYERCOOP_INLINE Floats16 load_second_of_pairs(const std::uint8_t* p) {
  return {second_of_pairs(bytes_at(p)), second_of_pairs(bytes_at(p + 32))};
}

LAYERCOOP_INLINE void store_int8(std::int8_t* p, Floats16 a, Floats16 b) {
  // The packs work within 128-bit halves: the permutation puts the eight quarters back in order.
  const Bytes words_a = _mm256_packs_epi32(_mm256_cvtps_epi32(a.low.x), _mm256_cvtps_epi32(a.high.x));
  const Bytes words_b = _mm256_packs_epi32(_mm256_cvtps_epi32(b.low.x), _mm256_cvtps_epi32(b.high.x));
  const Bytes order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<Bytes*>(p),
                      _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words_a, words_b), order));
}

// The same four bytes in every lane.
LAYERCOOP_INLINE Bytes four(const std::int8_t* x) {
  std::int32_t bytes;
  std::memcpy(&bytes, x, sizeof bytes);
  return _mm256_set1_epi32(bytes);
}

// What is computed of a line takes so many instructions that few loads of the following ones are under way by
// themselves. Asking for memory that does not exist does nothing.
template <int lines, int ahead>
LAYERCOOP_INLINE void prefetch(const std::uint8_t* p) {
#pragma GCC unroll 9
  for (int i = 0; i < lines; ++i) _mm_prefetch(reinterpret_cast<const char*>(p) + ahead + i * 64, _MM_HINT_T0);
}

// The sums so far stand in a register before the next product is taken (dots_avx.h).
LAYERCOOP_INLINE void settle(Bytes& sums) { asm("" : "+x"(sums)); }

// maddubs takes one unsigned and one signed number, and saturates beyond 2^15: |w| * (x with the sign of w), two of
// which are at most 2 * 128 * 127.
struct Int8Weights {
  Bytes number, size;
};
LAYERCOOP_INLINE Int8Weights int8_weights(Bytes w) { return {w, _mm256_abs_epi8(w)}; }
LAYERCOOP_INLINE Bytes first_sum_int8(const std::int32_t*) { return Bytes{}; }
LAYERCOOP_INLINE void add_int8(Bytes& sums, const Int8Weights& w, Bytes x) {
  const Bytes pairs = _mm256_maddubs_epi16(w.size, _mm256_sign_epi8(x, w.number));
  sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  settle(sums);
}
LAYERCOOP_INLINE Floats floats_of_int8(Bytes sums) { return _mm256_cvtepi32_ps(sums); }

// A group's sixteen products in a 16-bit lane are at most 16 * 15 * 127, below 2^15.
LAYERCOOP_INLINE Bytes low_halves(Bytes x) { return _mm256_and_si256(x, _mm256_set1_epi8(0x0f)); }
LAYERCOOP_INLINE Bytes high_halves(Bytes x) { return low_halves(_mm256_srli_epi16(x, 4)); }
LAYERCOOP_INLINE void add_int4(Bytes& sums, Bytes w, Bytes x) {
  sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x));
  settle(sums);
}
LAYERCOOP_INLINE Floats floats_of_int4(Bytes sums) {
  return _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
}

}  // namespace
}  // namespace layercoop::decode

#include "decode/dots_avx.h"
