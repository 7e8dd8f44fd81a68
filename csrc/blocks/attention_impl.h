// Products and exponentials of a few rows of scores, over the vectors that the including file has chosen: what
// attention and its slopes share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd/functions.h"

namespace layercoop::blocks {
namespace {

using namespace simd;

constexpr std::int64_t round_down(std::int64_t n, std::int64_t multiple) { return n / multiple * multiple; }

constexpr std::int64_t kTileRows = 6;
// Vectors of sums that a row keeps at once: with 6 x 4 of one register, or 6 x 1 of several, the sums and their
// operands fit the registers.
constexpr int kTileVectors = Floats::kLanes == kLanes ? 4 : 1;
constexpr std::int64_t kTileColumns = kTileVectors * kLanes;

// Where the numbers of a product's left side lie: that of row i and depth k at i * row + k * depth.
struct Strides {
  std::int64_t row;
  std::int64_t depth;
};

// c[6, 16 * vectors] = a[6, depth] b[depth, 16 * vectors], or added to c. Each sum runs over the depth in order.
template <int vectors>
LAYERCOOP_INLINE void product_tile(const float* a, Strides a_strides, const float* b, std::int64_t b_stride,
                                   std::int64_t depth, float* c, std::int64_t c_stride, bool add) {
  Floats16 sums[kTileRows][vectors] = {};
  if (add) {
#pragma GCC unroll 6
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sums[i][j] = Floats16::load(c + i * c_stride + j * kLanes);
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Floats16 column[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) column[j] = Floats16::load(b + k * b_stride + j * kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kTileRows; ++i) {
      const Floats16 factor = a[i * a_strides.row + k * a_strides.depth];
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sums[i][j] = fma(factor, column[j], sums[i][j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store(c + i * c_stride + j * kLanes, sums[i][j]);
  }
}

LAYERCOOP_INLINE void product_tiles(const float* a, Strides a_strides, const float* b, std::int64_t b_stride,
                                    std::int64_t depth, std::int64_t columns, float* c, std::int64_t c_stride,
                                    bool add) {
  std::int64_t j = 0;
  for (; j + kTileColumns <= columns; j += kTileColumns) {
    product_tile<kTileVectors>(a, a_strides, b + j, b_stride, depth, c + j, c_stride, add);
  }
  for (; j < columns; j += kLanes) product_tile<1>(a, a_strides, b + j, b_stride, depth, c + j, c_stride, add);
}

// c[6, columns] = a[6, depth] b[depth, columns]; columns is a multiple of 16.
LAYERCOOP_TARGET void product(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride,
                              std::int64_t depth, std::int64_t columns, float* c, std::int64_t c_stride) {
  product_tiles(a, {a_stride, 1}, b, b_stride, depth, columns, c, c_stride, false);
}

// `other` in the lanes in front of `first` and from n on, of the vector that begins at j.
LAYERCOOP_INLINE Floats16 seen(Floats16 x, std::int64_t j, std::int64_t first, std::int64_t n, float other) {
  x = select_first(lanes_left(j, n), x, other);
  return j < first ? select_first(static_cast<int>(first - j), other, x) : x;
}

// scores[first..n) become exp(scale * (score - largest)), the other numbers from `begin` to `columns` 0; returns their
// sum. `begin` is a multiple of a vector's lanes.
LAYERCOOP_TARGET float exponentials(float* scores, std::int64_t begin, std::int64_t first, std::int64_t n,
                                    std::int64_t columns, float scale) {
  const std::int64_t from = round_down(first, kLanes);
  Floats16 most = kLowest;
  for (std::int64_t j = from; j < n; j += kLanes) {
    most = max(seen(Floats16::load(scores + j), j, first, n, kLowest), most);
  }
  const Floats16 shift = largest(most);
  Floats16 sum = 0.0f;
  for (std::int64_t j = from; j < n; j += kLanes) {
    const Floats16 e = exp_of_term((Floats16::load(scores + j) - shift) * scale);
    const Floats16 kept = seen(e, j, first, n, 0.0f);
    store(scores + j, kept);
    sum = sum + kept;
  }
  for (std::int64_t j = begin; j < from; j += kLanes) store(scores + j, Floats16(0.0f));
  for (std::int64_t j = round_up(n, kLanes); j < columns; j += kLanes) store(scores + j, Floats16(0.0f));
  return total(sum);
}

// A row in another type of numbers.
template <typename From, typename To>
LAYERCOOP_INLINE void convert_row(const From* x, std::int64_t width, To* out) {
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const int n = lanes_left(j, width);
    write(out + j, n, read(x + j, n));
  }
}

}  // namespace
}  // namespace layercoop::blocks
