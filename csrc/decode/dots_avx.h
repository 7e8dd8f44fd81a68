// Dot products of packed integers over registers of bytes, kParts of which hold four columns of a tile's sixteen rows;
// included by dots_avx2.h and dots_avx512.h, which define what they take. dots_portable.h says what they do.
//
// Sums are added to in the order that is written here, and a part ends before the next one begins: GCC would take all
// products of a group first, keep the inputs for the next part, and run out of registers.
#pragma once

namespace layercoop::decode {
namespace {

template <int rows>
LAYERCOOP_INLINE void dots_int8(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride,
                                const std::int32_t* x_sums, std::int64_t sums_stride, Floats16 (&dots)[rows]) {
  prefetch<9, 1024>(q);  // with the scales between two groups
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    Bytes sums[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sums[r] = first_sum_int8(x_sums + r * sums_stride);
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
      const Int8Weights w = int8_weights(bytes_at(q + quad * 64 + part * sizeof(Bytes)));
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) add_int8(sums[r], w, four(x + r * stride + quad * 4));
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) part_of(dots[r], part) = floats_of_int8(sums[r]);
    asm("" ::: "memory");
  }
}

template <int rows>
LAYERCOOP_INLINE void dots_int4(const std::uint8_t* q, const std::int8_t* x, std::int64_t stride,
                                Floats16 (&dots)[rows]) {
  prefetch<5, 2048>(q);
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    Bytes sums[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sums[r] = Bytes{};
#pragma GCC unroll 4
    for (int eight = 0; eight < 4; ++eight) {
      const Bytes bytes = bytes_at(q + eight * 64 + part * sizeof(Bytes));
      const Bytes low = low_halves(bytes);
      const Bytes high = high_halves(bytes);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const std::int8_t* at = x + r * stride + eight * 8;
        add_int4(sums[r], low, four(at));
        add_int4(sums[r], high, four(at + 4));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) part_of(dots[r], part) = floats_of_int4(sums[r]);
    asm("" ::: "memory");
  }
}

}  // namespace
}  // namespace layercoop::decode
