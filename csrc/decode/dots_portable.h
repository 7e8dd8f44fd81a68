// Dot products of packed weights in plain C++: the meaning of the same functions in dots_avx2.h and dots_avx512.h. One
// of the three is included before product_kernels_impl.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"
#include "simd/floats_portable.h"

namespace layercoop::decode {
namespace {

using simd::Floats;
using simd::Floats16;

constexpr int kFloatRows = 4;    // input rows whose sums fit the registers
constexpr int kWidenedRows = 4;  // the same where weights are two vectors of bf16 numbers
constexpr int kIntRows = 4;
constexpr int float_tiles(int) { return 1; }  // tiles at once, so that enough chains of sums run in parallel
constexpr int int8_tiles(int) { return 1; }

// Asks memory for some lines, `ahead` bytes behind p, where the processor does not do that well enough by itself.
template <int lines, int ahead>
LAYERCOOP_INLINE void prefetch(const std::uint8_t*) {}

// The first, and the second, of four or of sixteen pairs of bf16 numbers.
LAYERCOOP_INLINE Floats first_of_pairs(const std::uint8_t* p) {
  simd::Int4 pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return (simd::Float4)(pairs << 16);
}
LAYERCOOP_INLINE Floats second_of_pairs(const std::uint8_t* p) {
  simd::Int4 pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return (simd::Float4)(pairs & ~0xffff);
}
LAYERCOOP_INLINE Floats16 load_first_of_pairs(const std::uint8_t* p) {
  return {{first_of_pairs(p), first_of_pairs(p + 16)}, {first_of_pairs(p + 32), first_of_pairs(p + 48)}};
}
LAYERCOOP_INLINE Floats16 load_second_of_pairs(const std::uint8_t* p) {
  return {{second_of_pairs(p), second_of_pairs(p + 16)}, {second_of_pairs(p + 32), second_of_pairs(p + 48)}};
}

// Stores 32 integers in -127..127.
LAYERCOOP_INLINE void store_int8(std::int8_t* p, Floats16 a, Floats16 b) {
  float numbers[32];
  store(numbers, a);
  store(numbers + 16, b);
  for (int i = 0; i < 32; ++i) p[i] = static_cast<std::int8_t>(numbers[i]);
}

// dots[r] = the exact sum of q * x over a group, for sixteen rows of weights (layout.h) and each of `rows` rows of
// inputs, which are `stride` apart. x_sums: the sum of each row's x, `sums_stride` apart.
template <int rows>
LAYERCOOP_INLINE void dots_int8(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride, const std::int32_t*,
                                std::int64_t, Floats16 (&dots)[rows]) {
  for (int r = 0; r < rows; ++r) {
    std::int32_t sums[16] = {};
    for (int quad = 0; quad < 8; ++quad) {
      for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 4; ++j) {
          sums[i] += static_cast<std::int8_t>(q[quad * 64 + i * 4 + j]) * x[r * stride + quad * 4 + j];
        }
      }
    }
    float exact[16];
    for (int i = 0; i < 16; ++i) exact[i] = static_cast<float>(sums[i]);
    dots[r] = Floats16::load(exact);
  }
}

template <int rows>
LAYERCOOP_INLINE void dots_int4(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride,
                                Floats16 (&dots)[rows]) {
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
    float exact[16];
    for (int i = 0; i < 16; ++i) exact[i] = static_cast<float>(sums[i]);
    dots[r] = Floats16::load(exact);
  }
}

}  // namespace
}  // namespace layercoop::decode
