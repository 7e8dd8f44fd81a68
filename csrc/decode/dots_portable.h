// Dot products of packed weights in plain C++, and the meaning of the same functions in dots_avx2.h and dots_avx512.h.
// One of the three is included before kernels.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"
#include "simd/floats_portable.h"

namespace layercoop::decode {
namespace {

using simd::Lanes;

constexpr int kFloatRows = 4;  // input rows whose sums fit the registers
constexpr int kIntRows = 4;
constexpr int float_tiles(int) { return 1; }  // tiles at once, so that enough chains of sums run side by side

// The first, and the second, of sixteen pairs of bf16 numbers.
LAYERCOOP_INLINE Lanes load_first_of_pairs(const std::uint8_t* p) {
  Lanes x;
  for (int i = 0; i < 16; ++i) {
    std::uint32_t pair;
    std::memcpy(&pair, p + 4 * i, sizeof pair);
    x.at[i] = of_bits(pair << 16);
  }
  return x;
}
LAYERCOOP_INLINE Lanes load_second_of_pairs(const std::uint8_t* p) {
  Lanes x;
  for (int i = 0; i < 16; ++i) {
    std::uint32_t pair;
    std::memcpy(&pair, p + 4 * i, sizeof pair);
    x.at[i] = of_bits(pair & 0xffff0000u);
  }
  return x;
}

// 32 whole numbers in -127..127.
LAYERCOOP_INLINE void store_int8(std::int8_t* p, Lanes a, Lanes b) {
  for (int i = 0; i < 16; ++i) {
    p[i] = static_cast<std::int8_t>(a.at[i]);
    p[16 + i] = static_cast<std::int8_t>(b.at[i]);
  }
}

// dots[r] = a group's sum of q * x for each of sixteen rows of weights (layout.h) and `rows` rows of inputs, `stride`
// apart, exact. x_sums: the sum of each row's x, `sums_stride` apart.
template <int rows>
LAYERCOOP_INLINE void dots_int8(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride, const std::int32_t*,
                                std::int64_t, Lanes (&dots)[rows]) {
  for (int r = 0; r < rows; ++r) {
    std::int32_t sums[16] = {};
    for (int quad = 0; quad < 8; ++quad) {
      for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 4; ++j) {
          sums[i] += static_cast<std::int8_t>(q[quad * 64 + i * 4 + j]) * x[r * stride + quad * 4 + j];
        }
      }
    }
    for (int i = 0; i < 16; ++i) dots[r].at[i] = static_cast<float>(sums[i]);
  }
}

template <int rows>
LAYERCOOP_INLINE void dots_int4(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride, Lanes (&dots)[rows]) {
  for (int r = 0; r < rows; ++r) {
    std::int32_t sums[16] = {};
    for (int eight = 0; eight < 4; ++eight) {
      for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 4; ++j) {
          const std::uint8_t byte = q[eight * 64 + i * 4 + j];
          const std::int8_t* at = x + r * stride + eight * 8 + j;
          sums[i] += (byte & 0x0f) * at[0] + (byte >> 4) * at[4];
        }
      }
    }
    for (int i = 0; i < 16; ++i) dots[r].at[i] = static_cast<float>(sums[i]);
  }
}

}  // namespace
}  // namespace layercoop::decode
