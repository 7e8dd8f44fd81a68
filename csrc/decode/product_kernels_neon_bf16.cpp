#include "cpu/dispatch.h"
#if LAYERCOOP_ARM

#define LAYERCOOP_TARGET LAYERCOOP_NEON_BF16
#include "decode/dots_neon.h"

#include "decode/product_kernels_impl.h"

namespace layercoop::decode {
namespace {

LAYERCOOP_INLINE bfloat16x8_t numbers_at(const void* p) { return vreinterpretq_bf16_s8(bytes_at(p)); }

// Two rows of pairs, four numbers each, of the two units' first two rows or their last two.
LAYERCOOP_INLINE bfloat16x8_t first_rows(bfloat16x8_t a, bfloat16x8_t b) {
  return vreinterpretq_bf16_s32(vzip1q_s32(vreinterpretq_s32_bf16(a), vreinterpretq_s32_bf16(b)));
}
LAYERCOOP_INLINE bfloat16x8_t last_rows(bfloat16x8_t a, bfloat16x8_t b) {
  return vreinterpretq_bf16_s32(vzip2q_s32(vreinterpretq_s32_bf16(a), vreinterpretq_s32_bf16(b)));
}
LAYERCOOP_INLINE bfloat16x8_t first_columns(bfloat16x8_t x, bfloat16x8_t y) {
  return vcombine_bf16(vget_low_bf16(x), vget_low_bf16(y));
}
LAYERCOOP_INLINE bfloat16x8_t last_columns(bfloat16x8_t x, bfloat16x8_t y) {
  return vcombine_bf16(vget_high_bf16(x), vget_high_bf16(y));
}

// bf16 weights times inputs rounded to bf16. A pair of input rows takes products of matrices, which by their definition
// add two pairs of columns after each other, as the dot products of a single row do: the bits are the same.
struct Bf16Dots {
  static constexpr int most_rows = 4;
  static constexpr int tiles_of(int rows) { return float_tiles(rows); }
  static constexpr std::int64_t kUnits = 4;  // eight columns at a time; groups have 32

  template <int rows, int tiles>
  static LAYERCOOP_INLINE void run(const std::uint8_t* weights, std::int64_t tile_bytes, const InputRows& inputs,
                                   std::int64_t row, Floats16 (&sums)[tiles][rows]) {
    constexpr int pairs = rows / 2;
    const std::int64_t stride = inputs.stride;
    const std::uint16_t* x = inputs.bf16 + row * stride;
    float32x4_t of_pairs[tiles][kQuarters][pairs + 1][2] = {};  // two rows of weights, each with both inputs
    float32x4_t of_single[tiles][kQuarters] = {};
    for (std::int64_t k = 0; k < tile_bytes / kUnit; k += kUnits) {
      bfloat16x8_t columns[rows];
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) columns[r] = numbers_at(x + r * stride + 2 * k);
#pragma GCC unroll 2
      for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 4
        for (int quarter = 0; quarter < kQuarters; ++quarter) {
          const std::uint8_t* from = weights + t * tile_bytes + k * kUnit + quarter * 16;
          const bfloat16x8_t units[] = {numbers_at(from), numbers_at(from + kUnit), numbers_at(from + 2 * kUnit),
                                        numbers_at(from + 3 * kUnit)};
#pragma GCC unroll 2
          for (int p = 0; p < pairs; ++p) {
            const bfloat16x8_t first = first_columns(columns[2 * p], columns[2 * p + 1]);
            const bfloat16x8_t last = last_columns(columns[2 * p], columns[2 * p + 1]);
            float32x4_t(&to)[2] = of_pairs[t][quarter][p];
            to[0] = vbfmmlaq_f32(to[0], first_rows(units[0], units[1]), first);
            to[1] = vbfmmlaq_f32(to[1], last_rows(units[0], units[1]), first);
            to[0] = vbfmmlaq_f32(to[0], first_rows(units[2], units[3]), last);
            to[1] = vbfmmlaq_f32(to[1], last_rows(units[2], units[3]), last);
          }
          if constexpr (rows % 2 == 1) {
            float32x4_t& to = of_single[t][quarter];
            to = vbfdotq_laneq_f32(to, units[0], columns[rows - 1], 0);
            to = vbfdotq_laneq_f32(to, units[1], columns[rows - 1], 1);
            to = vbfdotq_laneq_f32(to, units[2], columns[rows - 1], 2);
            to = vbfdotq_laneq_f32(to, units[3], columns[rows - 1], 3);
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 4
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
#pragma GCC unroll 2
        for (int p = 0; p < pairs; ++p) {
          const float32x4_t(&from)[2] = of_pairs[t][quarter][p];
          quarter_of(sums[t][2 * p], quarter) = vuzp1q_f32(from[0], from[1]);
          quarter_of(sums[t][2 * p + 1], quarter) = vuzp2q_f32(from[0], from[1]);
        }
        if constexpr (rows % 2 == 1) quarter_of(sums[t][rows - 1], quarter) = of_single[t][quarter];
      }
    }
  }
};

}  // namespace

Product* const kBf16Dots = product<Bf16Dots>;
}  // namespace layercoop::decode

#endif
