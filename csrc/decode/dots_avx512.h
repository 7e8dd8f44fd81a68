// Dot products of packed weights for AVX-512, with VNNI where the including file defines LAYERCOOP_VNNI;
// dots_portable.h says what each function does.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/floats_avx512.h"

namespace layercoop::decode {
namespace {

using simd::Floats;
using simd::Floats16;

constexpr int kFloatRows = 6;
constexpr int kWidenedRows = 6;
constexpr int kIntRows = 6;
constexpr int float_tiles(int rows) { return rows <= 2 ? 4 : 2; }
constexpr int int8_tiles(int) { return 1; }

using Bytes = __m512i;
constexpr int kParts = 1;

LAYERCOOP_INLINE Bytes bytes_at(const void* p) { return _mm512_loadu_si512(p); }
LAYERCOOP_INLINE Floats& part_of(Floats16& x, int) { return x; }

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
LAYERCOOP_INLINE Bytes four(const std::int8_t* x) {
  std::int32_t bytes;
  std::memcpy(&bytes, x, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

// Enough loads are under way by themselves.
template <int lines, int ahead>
LAYERCOOP_INLINE void prefetch(const std::uint8_t*) {}

LAYERCOOP_INLINE Bytes low_halves(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(0x0f)); }
LAYERCOOP_INLINE Bytes high_halves(Bytes x) { return low_halves(_mm512_srli_epi16(x, 4)); }
LAYERCOOP_INLINE Floats floats_of_int8(Bytes sums) { return _mm512_cvtepi32_ps(sums); }

#if defined(LAYERCOOP_VNNI)

// The instruction takes unsigned bytes times signed ones: w + 128, and 128 times the sum of x taken off.
using Int8Weights = Bytes;
LAYERCOOP_INLINE Int8Weights int8_weights(Bytes w) {
  return _mm512_xor_si512(w, _mm512_set1_epi8(static_cast<char>(0x80)));
}
LAYERCOOP_INLINE Bytes first_sum_int8(const std::int32_t* x_sum) { return _mm512_set1_epi32(-128 * *x_sum); }
LAYERCOOP_INLINE void add_int8(Bytes& sums, Int8Weights w, Bytes x) { sums = _mm512_dpbusd_epi32(sums, w, x); }
LAYERCOOP_INLINE void add_int4(Bytes& sums, Bytes w, Bytes x) { sums = _mm512_dpbusd_epi32(sums, w, x); }
LAYERCOOP_INLINE Floats floats_of_int4(Bytes sums) { return _mm512_cvtepi32_ps(sums); }

#else

// As in dots_avx2.h.
LAYERCOOP_INLINE void settle(Bytes& sums) { asm("" : "+v"(sums)); }
struct Int8Weights {
  __mmask64 below;
  Bytes size;
};
LAYERCOOP_INLINE Int8Weights int8_weights(Bytes w) { return {_mm512_movepi8_mask(w), _mm512_abs_epi8(w)}; }
LAYERCOOP_INLINE Bytes first_sum_int8(const std::int32_t*) { return Bytes{}; }
LAYERCOOP_INLINE void add_int8(Bytes& sums, const Int8Weights& w, Bytes x) {
  const Bytes pairs = _mm512_maddubs_epi16(w.size, _mm512_mask_sub_epi8(x, w.below, Bytes{}, x));
  sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  settle(sums);
}
LAYERCOOP_INLINE void add_int4(Bytes& sums, Bytes w, Bytes x) {
  sums = _mm512_add_epi16(sums, _mm512_maddubs_epi16(w, x));
  settle(sums);
}
LAYERCOOP_INLINE Floats floats_of_int4(Bytes sums) {
  return _mm512_cvtepi32_ps(_mm512_madd_epi16(sums, _mm512_set1_epi16(1)));
}

#endif

}  // namespace
}  // namespace layercoop::decode

#include "decode/dots_avx.h"
