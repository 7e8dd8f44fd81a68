// The kernels of product_kernels.h over the vectors of floats and the dot products of integers (dots_*.h) that the
// including file has chosen.
//
// An output is one chain of sums over the columns in order, whatever is computed at the same time, so a row's bits do
// not depend on the other rows. Chains of other rows or other tiles hide the latency of a chain.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "decode/layout.h"
#include "decode/product_kernels.h"

namespace layercoop::decode {
namespace {

using namespace simd;

// A kind of product computes the sums of `rows` input rows, from `row` on, with `tiles` tiles at `weights`. The sums of
// `most_rows` rows fit the registers; `tiles_of(rows)` tiles are taken at once.
struct Fp32 {
  static constexpr int most_rows = kFloatRows;
  static constexpr int tiles_of(int rows) { return float_tiles(rows); }

  template <int rows, int tiles>
  static LAYERCOOP_INLINE void run(const std::uint8_t* weights, std::int64_t tile_bytes, const InputRows& inputs,
                                   std::int64_t row, Floats16 (&sums)[tiles][rows]) {
    const std::int64_t stride = inputs.stride;
    const float* x = inputs.values + row * stride;
    const std::int64_t depth = tile_bytes / kLine;
    for (std::int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 8
      for (int t = 0; t < tiles; ++t) {
        const Floats16 column = Floats16::load(reinterpret_cast<const float*>(weights + t * tile_bytes + k * kLine));
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sums[t][r] = fma(x[r * stride + k], column, sums[t][r]);
      }
    }
  }
};

// bf16 weights, widened, times fp32 inputs.
struct Bf16Widened {
  static constexpr int most_rows = kWidenedRows;
  static constexpr int tiles_of(int rows) { return float_tiles(rows); }

  template <int rows, int tiles>
  static LAYERCOOP_INLINE void run(const std::uint8_t* weights, std::int64_t tile_bytes, const InputRows& inputs,
                                   std::int64_t row, Floats16 (&sums)[tiles][rows]) {
    const std::int64_t stride = inputs.stride;
    const float* x = inputs.values + row * stride;
    const std::int64_t pairs = tile_bytes / kLine;
    for (std::int64_t k = 0; k < pairs; ++k) {
#pragma GCC unroll 8
      for (int t = 0; t < tiles; ++t) {
        const std::uint8_t* pair = weights + t * tile_bytes + k * kLine;
        if constexpr (tiles == 1) prefetch<1, 2048>(pair);  // several keep enough reads under way
        const Floats16 first = load_first_of_pairs(pair);
        const Floats16 second = load_second_of_pairs(pair);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
          sums[t][r] = fma(x[r * stride + 2 * k + 1], second, fma(x[r * stride + 2 * k], first, sums[t][r]));
        }
      }
    }
  }
};

// Group by group, scale * scale of the input * sum of q * q of the input; int4 adds min * scale of the input * sum of q
// of the input.
template <Format format>
struct Integers {
  static constexpr int most_rows = kIntRows;
  static constexpr int tiles_of(int rows) { return format == Format::int8 ? int8_tiles(rows) : 1; }

  template <int rows, int tiles>
  static LAYERCOOP_INLINE void run(const std::uint8_t* first, std::int64_t tile_bytes, const InputRows& inputs,
                                   std::int64_t row, Floats16 (&sums)[tiles][rows]) {
    constexpr bool is_int4 = format == Format::int4;
    const std::int64_t stride = inputs.stride;
    const std::int64_t groups = stride / kGroup;
    const std::int8_t* q = inputs.q + row * stride;
    const float* scales = inputs.scales + row * groups;
    const std::int32_t* q_sums = inputs.sums + row * groups;
    const std::int64_t used = inputs.groups;
    for (std::int64_t g = 0; g < used; ++g) {
#pragma GCC unroll 4
      for (int t = 0; t < tiles; ++t) {
        const std::uint8_t* const weights = first + t * tile_bytes;
        Floats16 dots[rows];
        if constexpr (is_int4) {
          dots_int4<rows>(weights + int4_quants(g), q + g * kGroup, stride, dots);
        } else {
          dots_int8<rows>(weights + int8_quants(g), q + g * kGroup, stride, q_sums + g, groups, dots);
        }
        const std::uint8_t* const at = weights + (is_int4 ? int4_scales(g) : int8_scales(g));
        const Floats16 scale = Floats16::load(reinterpret_cast<const Fp16*>(at));
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
          const float x_scale = scales[r * groups + g];
          sums[t][r] = fma(dots[r], scale * x_scale, sums[t][r]);
          if constexpr (is_int4) {
            const Floats16 low = Floats16::load(reinterpret_cast<const Fp16*>(weights + int4_mins(g)));
            sums[t][r] = fma(low, x_scale * static_cast<float>(q_sums[r * groups + g]), sums[t][r]);
          }
        }
      }
    }
  }
};
using Int8 = Integers<Format::int8>;
using Int4 = Integers<Format::int4>;

template <typename Kind, int rows, int tiles>
LAYERCOOP_INLINE void one_pass(const PackedRows& weights, const InputRows& inputs, std::int64_t row, float* out,
                               std::int64_t out_stride, std::int64_t tile) {
  Floats16 sums[tiles][rows] = {};
  Kind::template run<rows, tiles>(weights.tile(tile), weights.tile_bytes, inputs, row, sums);
#pragma GCC unroll 8
  for (int t = 0; t < tiles; ++t) {
    const std::int64_t first = (tile + t) * kTile;
    const int n = static_cast<int>(std::min(kTile, weights.rows - first));
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      float* to = out + (row + r) * out_stride + first;
      n == kTile ? store(to, sums[t][r]) : store_first(to, n, sums[t][r]);
    }
  }
}

template <typename Kind, int rows>
LAYERCOOP_TARGET void some_rows(const PackedRows& weights, const InputRows& inputs, std::int64_t row, float* out,
                                std::int64_t out_stride, std::int64_t tile, std::int64_t end) {
  constexpr int wide = Kind::tiles_of(rows);
  if constexpr (wide > 1) {
    for (; tile + wide <= end; tile += wide) {
      one_pass<Kind, rows, wide>(weights, inputs, row, out, out_stride, tile);
    }
  }
  for (; tile < end; ++tile) one_pass<Kind, rows, 1>(weights, inputs, row, out, out_stride, tile);
}

template <typename Kind>
LAYERCOOP_TARGET void product(const PackedRows& weights, const InputRows& inputs, float* out, std::int64_t out_stride,
                              std::int64_t begin, std::int64_t end) {
  const std::int64_t first = begin / kTile;
  const std::int64_t last = (end + kTile - 1) / kTile;
  const std::int64_t rows = inputs.rows;
  const std::int64_t passes = (rows + Kind::most_rows - 1) / Kind::most_rows;
  // A single pass goes through all tiles. Several passes take a few tiles each time, which stay in the cache.
  constexpr std::int64_t few = 2;
  const std::int64_t step = passes > 1 ? few : std::max<std::int64_t>(1, last - first);
  for (std::int64_t tile = first; tile < last; tile += step) {
    const std::int64_t stop = std::min(last, tile + step);
    for (std::int64_t pass = 0; pass < passes; ++pass) {
      const std::int64_t row = rows * pass / passes;
      const std::int64_t count = rows * (pass + 1) / passes - row;
      switch (count) {
        case 1: some_rows<Kind, 1>(weights, inputs, row, out, out_stride, tile, stop); break;
        case 2: some_rows<Kind, 2>(weights, inputs, row, out, out_stride, tile, stop); break;
        case 3:
          if constexpr (Kind::most_rows >= 3) some_rows<Kind, 3>(weights, inputs, row, out, out_stride, tile, stop);
          break;
        case 4:
          if constexpr (Kind::most_rows >= 4) some_rows<Kind, 4>(weights, inputs, row, out, out_stride, tile, stop);
          break;
        case 5:
          if constexpr (Kind::most_rows >= 5) some_rows<Kind, 5>(weights, inputs, row, out, out_stride, tile, stop);
          break;
        case 6:
          if constexpr (Kind::most_rows >= 6) some_rows<Kind, 6>(weights, inputs, row, out, out_stride, tile, stop);
          break;
      }
    }
  }
}

LAYERCOOP_TARGET inline void quantise(const float* x, std::int64_t groups, std::int8_t* q, float* scales,
                                      std::int32_t* sums) {
  for (std::int64_t g = 0; g < groups; ++g) {
    const Floats16 a = Floats16::load(x + g * kGroup);
    const Floats16 b = Floats16::load(x + g * kGroup + kTile);
    const Floats16 zero = 0.0f;
    const float most = largest(max(max(zero - a, a), max(zero - b, b)));
    // 0 if all numbers are finite, else NaN.
    const float finite = total(a * zero + b * zero);
    // 127 / most would overflow for smaller numbers, which count as 0.
    const bool any = most > 1e-30f && finite == 0.0f;
    const float inverse = any ? 127.0f / most : 0.0f;
    scales[g] = (any ? most / 127.0f : 0.0f) + finite;
    if (!any) {
      std::fill(q + g * kGroup, q + (g + 1) * kGroup, std::int8_t{0});
      sums[g] = 0;
      continue;
    }
    const Floats16 near_a = round(a * inverse);
    const Floats16 near_b = round(b * inverse);
    store_int8(q + g * kGroup, near_a, near_b);
    sums[g] = static_cast<std::int32_t>(total(near_a + near_b));
  }
}

LAYERCOOP_TARGET inline void narrow_all(const float* x, std::int64_t groups, std::uint16_t* out) {
  for (std::int64_t i = 0; i < groups * kGroup; i += kTile)
    store(reinterpret_cast<Bf16*>(out + i), Floats16::load(x + i));
}

LAYERCOOP_TARGET inline void widen_all(const Bf16* x, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; i += kTile) {
    const int count = static_cast<int>(std::min(kTile, n - i));
    count == kTile ? store(out + i, Floats16::load(x + i))
                   : store_first(out + i, count, Floats16::load_first(x + i, count));
  }
}

}  // namespace
}  // namespace layercoop::decode
