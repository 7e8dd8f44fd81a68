// Dot products of packed weights for NEON; dots_portable.h says what each function does. An including file may use
// more: with LAYERCOOP_DOTPROD the dot products of integers are those of DotProd, with LAYERCOOP_I8MM too pairs of
// input rows use I8MM's products of matrices. Their sums are exact, so that all three give the same bits.
//
// Weights are read in *units*: four bytes of each of sixteen rows, which are four columns of int8 or a pair of bf16
// numbers. A register holds a unit of four rows, a quarter of a tile.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/floats_neon.h"

namespace layercoop::decode {
namespace {

using simd::Floats;
using simd::Floats16;

constexpr int kFloatRows = 6;    // 6 x 4 sums and their operands fit 32 registers
constexpr int kWidenedRows = 4;  // 4 x 4, and two vectors of weights
#if defined(LAYERCOOP_DOTPROD)
constexpr int kIntRows = 4;  // fewest instructions a row, though the sums in fp32 do not fit beside the integers
#else
constexpr int kIntRows = 2;
#endif
constexpr int float_tiles(int rows) { return rows == 1 ? 2 : 1; }
constexpr int int8_tiles(int) { return 1; }
constexpr int kQuarters = 4;
constexpr int kUnit = 64;

// Whether processors do well without is not known.
template <int lines, int ahead>
LAYERCOOP_INLINE void prefetch(const std::uint8_t*) {}

LAYERCOOP_INLINE Floats& quarter_of(Floats16& x, int quarter) {
  simd::Pair<Floats>& half = quarter < 2 ? x.low : x.high;
  return quarter % 2 == 0 ? half.low : half.high;
}

LAYERCOOP_INLINE int8x16_t bytes_at(const void* p) { return vld1q_s8(static_cast<const std::int8_t*>(p)); }

LAYERCOOP_INLINE Floats first_of_pairs(const std::uint8_t* p) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_s8(bytes_at(p)), 16));
}
LAYERCOOP_INLINE Floats second_of_pairs(const std::uint8_t* p) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_s8(bytes_at(p)), vdupq_n_u32(0xffff0000)));
}
LAYERCOOP_INLINE Floats16 load_first_of_pairs(const std::uint8_t* p) {
  return {{first_of_pairs(p), first_of_pairs(p + 16)}, {first_of_pairs(p + 32), first_of_pairs(p + 48)}};
}
LAYERCOOP_INLINE Floats16 load_second_of_pairs(const std::uint8_t* p) {
  return {{second_of_pairs(p), second_of_pairs(p + 16)}, {second_of_pairs(p + 32), second_of_pairs(p + 48)}};
}

LAYERCOOP_INLINE int16x8_t words_of(simd::Pair<Floats> a) {
  return vcombine_s16(vmovn_s32(vcvtnq_s32_f32(a.low.x)), vmovn_s32(vcvtnq_s32_f32(a.high.x)));
}
LAYERCOOP_INLINE void store_int8(std::int8_t* p, Floats16 a, Floats16 b) {
  vst1q_s8(p, vcombine_s8(vmovn_s16(words_of(a.low)), vmovn_s16(words_of(a.high))));
  vst1q_s8(p + 16, vcombine_s8(vmovn_s16(words_of(b.low)), vmovn_s16(words_of(b.high))));
}

LAYERCOOP_INLINE int8x16_t low_halves(int8x16_t x) { return vandq_s8(x, vdupq_n_s8(0x0f)); }
LAYERCOOP_INLINE int8x16_t high_halves(int8x16_t x) {
  return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x), 4));
}

// Units 4 * part .. 4 * part + 3 of a quarter of a group's weights.
struct Int8Units {
  static LAYERCOOP_INLINE void read(const std::uint8_t* q, int quarter, int part, int8x16_t (&units)[4]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) units[i] = bytes_at(q + (4 * part + i) * kUnit + quarter * 16);
  }
};
struct Int4Units {
  static LAYERCOOP_INLINE void read(const std::uint8_t* q, int quarter, int part, int8x16_t (&units)[4]) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int8x16_t bytes = bytes_at(q + (2 * part + i) * kUnit + quarter * 16);
      units[2 * i] = low_halves(bytes);
      units[2 * i + 1] = high_halves(bytes);
    }
  }
};

// Adds the products of four units with sixteen columns of some input rows to the sums of a quarter's four rows.
#if defined(LAYERCOOP_DOTPROD)

struct Sums {
  int32x4_t of_rows = vdupq_n_s32(0);

  LAYERCOOP_INLINE void add(const int8x16_t (&units)[4], int8x16_t x) {
    of_rows = vdotq_laneq_s32(of_rows, units[0], x, 0);
    of_rows = vdotq_laneq_s32(of_rows, units[1], x, 1);
    of_rows = vdotq_laneq_s32(of_rows, units[2], x, 2);
    of_rows = vdotq_laneq_s32(of_rows, units[3], x, 3);
  }
  LAYERCOOP_INLINE int32x4_t all() const { return of_rows; }
};

#else

// Products of two units are at most 2 * 128 * 127, which 16 bits hold.
struct Sums {
  int32x4_t of_first = vdupq_n_s32(0);  // two rows, each in two lanes
  int32x4_t of_last = vdupq_n_s32(0);

  LAYERCOOP_INLINE void add_two(int8x16_t first, int8x16_t second, int8x8_t x) {
    const int8x16_t a = vreinterpretq_s8_s32(vdupq_lane_s32(vreinterpret_s32_s8(x), 0));
    const int8x16_t b = vreinterpretq_s8_s32(vdupq_lane_s32(vreinterpret_s32_s8(x), 1));
    const int16x8_t low = vmull_s8(vget_low_s8(first), vget_low_s8(a));
    const int16x8_t high = vmull_high_s8(first, a);
    of_first = vpadalq_s16(of_first, vmlal_s8(low, vget_low_s8(second), vget_low_s8(b)));
    of_last = vpadalq_s16(of_last, vmlal_high_s8(high, second, b));
  }
  LAYERCOOP_INLINE void add(const int8x16_t (&units)[4], int8x16_t x) {
    add_two(units[0], units[1], vget_low_s8(x));
    add_two(units[2], units[3], vget_high_s8(x));
  }
  LAYERCOOP_INLINE int32x4_t all() const { return vpaddq_s32(of_first, of_last); }
};

#endif

#if defined(LAYERCOOP_I8MM)

// A pair of input rows: the instruction multiplies two rows of weights with them, eight columns at a time.
struct PairSums {
  int32x4_t of_first = vdupq_n_s32(0);  // two rows of weights, each with both inputs
  int32x4_t of_last = vdupq_n_s32(0);

  LAYERCOOP_INLINE void add(const int8x16_t (&units)[4], int8x16_t x, int8x16_t y) {
    const int8x16_t inputs[] = {vcombine_s8(vget_low_s8(x), vget_low_s8(y)),
                                vcombine_s8(vget_high_s8(x), vget_high_s8(y))};
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int32x4_t a = vreinterpretq_s32_s8(units[2 * i]);
      const int32x4_t b = vreinterpretq_s32_s8(units[2 * i + 1]);
      of_first = vmmlaq_s32(of_first, vreinterpretq_s8_s32(vzip1q_s32(a, b)), inputs[i]);
      of_last = vmmlaq_s32(of_last, vreinterpretq_s8_s32(vzip2q_s32(a, b)), inputs[i]);
    }
  }
  LAYERCOOP_INLINE int32x4_t of_x() const { return vuzp1q_s32(of_first, of_last); }
  LAYERCOOP_INLINE int32x4_t of_y() const { return vuzp2q_s32(of_first, of_last); }
};
constexpr int pairs_of(int rows) { return rows / 2; }

#else

constexpr int pairs_of(int) { return 0; }

#endif

// A group's products, quarter by quarter, with the inputs in registers.
template <typename Units, int rows>
LAYERCOOP_INLINE void dots_of(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride,
                              Floats16 (&dots)[rows]) {
  constexpr int pairs = pairs_of(rows);
  constexpr int single = rows - 2 * pairs;
  int8x16_t inputs[rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    inputs[r][0] = bytes_at(x + r * stride);
    inputs[r][1] = bytes_at(x + r * stride + 16);
  }
#pragma GCC unroll 4
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    Sums sums[single + 1];  // one is not used: C++ has no arrays of nothing
#if defined(LAYERCOOP_I8MM)
    PairSums pair_sums[pairs + 1];
#endif
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part) {
      int8x16_t units[4];
      Units::read(q, quarter, part, units);
#if defined(LAYERCOOP_I8MM)
#pragma GCC unroll 4
      for (int p = 0; p < pairs; ++p) pair_sums[p].add(units, inputs[2 * p][part], inputs[2 * p + 1][part]);
#endif
#pragma GCC unroll 8
      for (int r = 0; r < single; ++r) sums[r].add(units, inputs[2 * pairs + r][part]);
    }
#if defined(LAYERCOOP_I8MM)
#pragma GCC unroll 4
    for (int p = 0; p < pairs; ++p) {
      quarter_of(dots[2 * p], quarter) = vcvtq_f32_s32(pair_sums[p].of_x());
      quarter_of(dots[2 * p + 1], quarter) = vcvtq_f32_s32(pair_sums[p].of_y());
    }
#endif
#pragma GCC unroll 8
    for (int r = 0; r < single; ++r) quarter_of(dots[2 * pairs + r], quarter) = vcvtq_f32_s32(sums[r].all());
    // A quarter of several rows ends before the next begins: GCC would keep what both load, and run out of registers.
    if constexpr (rows > 1) asm("" ::: "memory");
  }
}

template <int rows>
LAYERCOOP_INLINE void dots_int8(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride, const std::int32_t*,
                                std::int64_t, Floats16 (&dots)[rows]) {
  dots_of<Int8Units, rows>(q, x, stride, dots);
}

template <int rows>
LAYERCOOP_INLINE void dots_int4(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride,
                                Floats16 (&dots)[rows]) {
  dots_of<Int4Units, rows>(q, x, stride, dots);
}

}  // namespace
}  // namespace layercoop::decode
