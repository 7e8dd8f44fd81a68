// Products by AMX, whose instructions multiply up to sixteen rows of inputs by the sixteen outputs of a tile. The bytes
// of packed tiles are in the order that they take: a line holds four columns (in bf16 two) of each output.
#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#define LAYERCOOP_TARGET LAYERCOOP_AMX
#include <algorithm>

#include "decode/dots_avx512.h"
#include "decode/layout.h"
#include "decode/product_kernels.h"

namespace layercoop::decode {
namespace {

constexpr int kMatrixRows = 16;
// Integers of fewer rows take fewer instructions as dot products, whose bits are the same.
constexpr std::int64_t kLeastRows = 8;

// The shapes of the eight registers, as LDTILECFG reads them.
struct alignas(64) Shapes {
  std::uint8_t palette = 1;
  std::uint8_t start = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int first, int count, std::int64_t height, std::int64_t width) {
    for (int i = first; i < first + count; ++i) {
      rows[i] = static_cast<std::uint8_t>(height);
      row_bytes[i] = static_cast<std::uint16_t>(width);
    }
  }
};

// Loads of registers read memory, which GCC's intrinsics do not say.
LAYERCOOP_INLINE void finish_stores() { asm volatile("" ::: "memory"); }

// A group of int4 as bytes.
LAYERCOOP_INLINE void spread(const std::uint8_t* q, std::uint8_t* bytes) {
#pragma GCC unroll 4
  for (int eight = 0; eight < 4; ++eight) {
    const Bytes both = bytes_at(q + eight * kLine);
    _mm512_store_si512(bytes + 2 * eight * kLine, low_halves(both));
    _mm512_store_si512(bytes + (2 * eight + 1) * kLine, high_halves(both));
  }
}

// Up to sixteen input rows, and a tile's outputs of them. All sixteen are computed, so that their sums stay in vectors;
// those behind the last one have the last one's scales and are not stored.
template <Format format>
class IntegerRows {
 public:
  IntegerRows(const InputRows& inputs, std::int64_t row, std::int64_t count)
      : stride_(inputs.stride), groups_(inputs.groups), count_(count), q_(inputs.q + row * inputs.stride) {
    for (std::int64_t r = 0; r < kMatrixRows; ++r) {
      const std::int64_t at = (row + std::min(r, count - 1)) * (stride_ / kGroup);
      scales_[r] = inputs.scales + at;
      sums_[r] = inputs.sums + at;
    }
  }

  LAYERCOOP_TARGET void tile(const std::uint8_t* weights, int outputs, float* out, std::int64_t out_stride) {
    Floats16 total[kMatrixRows] = {};
    for (std::int64_t begin = 0; begin < groups_; begin += kChunk) {
      const std::int64_t end = std::min(groups_, begin + kChunk);
      if constexpr (is_int4) scale_sums(begin, static_cast<int>(end - begin));
      // Two groups at a time, in registers of their own.
      for (std::int64_t g = begin; g < end; g += 2) {
        const bool both = g + 1 < end;
        multiply(weights, g, both);
        add(weights, g, g - begin, dots_[0], total);
        if (both) add(weights, g + 1, g + 1 - begin, dots_[1], total);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kMatrixRows; ++r) {
      if (r < count_) store_first(out + r * out_stride, outputs, total[r]);
    }
  }

 private:
  static constexpr bool is_int4 = format == Format::int4;
  static constexpr std::int64_t kChunk = 16;  // groups, of which the mins' factors are computed at once

  static LAYERCOOP_INLINE const std::uint8_t* quants(const std::uint8_t* weights, std::int64_t g) {
    return weights + (is_int4 ? int4_quants(g) : int8_quants(g));
  }

  LAYERCOOP_INLINE void scale_sums(std::int64_t begin, int count) {
    for (int r = 0; r < kMatrixRows; ++r) {
      const __m512i sums = _mm512_maskz_loadu_epi32(simd::first_lanes(count), sums_[r] + begin);
      store(scaled_sums_[r], Floats16::load_first(scales_[r] + begin, count) * _mm512_cvtepi32_ps(sums));
    }
  }

  LAYERCOOP_INLINE void multiply(const std::uint8_t* weights, std::int64_t g, bool both) {
    const std::uint8_t* first = quants(weights, g);
    const std::uint8_t* second = quants(weights, g + 1);
    if constexpr (is_int4) {
      spread(first, bytes_[0]);
      first = bytes_[0];
      if (both) spread(second, bytes_[1]);
      second = bytes_[1];
      finish_stores();
    }
    _tile_zero(0);
    _tile_loadd(2, q_ + g * kGroup, stride_);
    _tile_loadd(4, first, kLine);
    _tile_dpbssd(0, 2, 4);
    if (both) {
      _tile_zero(1);
      _tile_loadd(3, q_ + (g + 1) * kGroup, stride_);
      _tile_loadd(5, second, kLine);
      _tile_dpbssd(1, 3, 5);
      _tile_stored(1, dots_[1], kLine);
    }
    _tile_stored(0, dots_[0], kLine);
  }

  LAYERCOOP_INLINE void add(const std::uint8_t* weights, std::int64_t g, std::int64_t in_chunk,
                            const std::int32_t (&dots)[kMatrixRows][kTile], Floats16 (&total)[kMatrixRows]) const {
    const std::uint8_t* const at = weights + (is_int4 ? int4_scales(g) : int8_scales(g));
    const Floats16 scale = Floats16::load(reinterpret_cast<const Fp16*>(at));
#pragma GCC unroll 16
    for (int r = 0; r < kMatrixRows; ++r) {
      const Floats16 found = floats_of_int8(_mm512_load_si512(dots[r]));
      total[r] = fma(found, scale * scales_[r][g], total[r]);
      if constexpr (is_int4) {
        const Floats16 low = Floats16::load(reinterpret_cast<const Fp16*>(weights + int4_mins(g)));
        total[r] = fma(low, scaled_sums_[r][in_chunk], total[r]);
      }
    }
  }

  std::int64_t stride_, groups_, count_;
  const std::int8_t* q_;
  const float* scales_[kMatrixRows];
  const std::int32_t* sums_[kMatrixRows];
  alignas(64) std::uint8_t bytes_[2][8 * kLine];
  alignas(64) std::int32_t dots_[2][kMatrixRows][kTile] = {};
  alignas(64) float scaled_sums_[kMatrixRows][kChunk];
};

template <Format format>
LAYERCOOP_TARGET void integers(const PackedRows& weights, const InputRows& inputs, float* out, std::int64_t out_stride,
                               std::int64_t begin, std::int64_t end) {
  if (inputs.rows < kLeastRows) {
    return (format == Format::int4 ? kInt4Dots : kInt8Dots)(weights, inputs, out, out_stride, begin, end);
  }
  for (std::int64_t row = 0; row < inputs.rows; row += kMatrixRows) {
    const std::int64_t count = std::min<std::int64_t>(kMatrixRows, inputs.rows - row);
    Shapes shapes;
    shapes.set(0, 2, count, kLine);       // sums
    shapes.set(2, 2, count, kGroup);      // inputs
    shapes.set(4, 2, kGroup / 4, kLine);  // weights
    _tile_loadconfig(&shapes);
    IntegerRows<format> rows(inputs, row, count);
    for (std::int64_t first = begin; first < end; first += kTile) {
      const int outputs = static_cast<int>(std::min(kTile, weights.rows - first));
      rows.tile(weights.tile(first / kTile), outputs, out + row * out_stride + first, out_stride);
    }
  }
  _tile_release();
}

// Sums of one or four tiles of outputs in bf16: they stay in the registers to the last column.
template <int tiles>
LAYERCOOP_TARGET void bf16_sums(const std::uint8_t* weights, std::int64_t tile_bytes, const std::uint16_t* x,
                                std::int64_t stride, float (&sums)[4][kMatrixRows][kTile]) {
  static_assert(tiles == 1 || tiles == 4);
  constexpr std::int64_t kStep = kGroup / 2 * kLine;
  _tile_zero(0);
  if constexpr (tiles == 4) {
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t k = 0; k * kStep < tile_bytes; ++k) {
    const std::uint8_t* const at = weights + k * kStep;
    _tile_loadd(4, x + k * kGroup, stride * 2);
    _tile_loadd(5, at, kLine);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (tiles == 4) {
      _tile_loadd(6, at + tile_bytes, kLine);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(5, at + 2 * tile_bytes, kLine);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, at + 3 * tile_bytes, kLine);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
  _tile_stored(0, sums[0], kLine);
  if constexpr (tiles == 4) {
    _tile_stored(1, sums[1], kLine);
    _tile_stored(2, sums[2], kLine);
    _tile_stored(3, sums[3], kLine);
  }
}

// Any number of rows goes this way, since sums of bf16 are not those of dot products.
LAYERCOOP_TARGET void bf16_matrices(const PackedRows& weights, const InputRows& inputs, float* out,
                                    std::int64_t out_stride, std::int64_t begin, std::int64_t end) {
  alignas(64) float sums[4][kMatrixRows][kTile];
  for (std::int64_t row = 0; row < inputs.rows; row += kMatrixRows) {
    const std::int64_t count = std::min<std::int64_t>(kMatrixRows, inputs.rows - row);
    Shapes shapes;
    shapes.set(0, 4, count, kLine);       // sums
    shapes.set(4, 1, count, kLine);       // inputs
    shapes.set(5, 2, kGroup / 2, kLine);  // weights
    _tile_loadconfig(&shapes);
    const std::uint16_t* const x = inputs.bf16 + row * inputs.stride;
    for (std::int64_t first = begin; first < end;) {
      const std::int64_t tiles = first + 3 * kTile < end ? 4 : 1;
      (tiles == 4 ? bf16_sums<4> : bf16_sums<1>)(weights.tile(first / kTile), weights.tile_bytes, x, inputs.stride,
                                                 sums);
      for (std::int64_t t = 0; t < tiles; ++t, first += kTile) {
        const int outputs = static_cast<int>(std::min(kTile, weights.rows - first));
        for (std::int64_t r = 0; r < count; ++r) {
          store_first(out + (row + r) * out_stride + first, outputs, Floats16::load(sums[t][r]));
        }
      }
    }
  }
  _tile_release();
}

}  // namespace

Product* const kInt8Matrices = integers<Format::int8>;
Product* const kInt4Matrices = integers<Format::int4>;
Product* const kBf16Matrices = bf16_matrices;
}  // namespace layercoop::decode

#endif
