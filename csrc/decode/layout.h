// Where the numbers of a packed tile are. Offsets are in bytes from the beginning of the tile.
//
//     fp32   column by column: 16 rows' numbers                                  64 bytes a column
//     bf16   pair of columns by pair: 16 rows' pairs                             64 bytes a pair
//     int8   two groups at a time: 16 fp16 scales of the first, 16 of the second, then for each group eight
//            times 16 rows' four columns                                         34 bytes for 32 weights
//     int4   group by group: 16 fp16 scales, 16 fp16 mins, then four times 16 rows' eight columns:
//            column j < 4 of the eight is the low half of byte j, column 4 + j the high one
//                                                                                20 bytes for 32 weights
#pragma once

#include <cstdint>

#include "decode/matrix.h"

namespace layercoop::decode {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kHalves = kTile * 2;  // bytes of one scale for each row

constexpr std::int64_t int8_scales(std::int64_t group) { return group / 2 * 1088 + group % 2 * kHalves; }
constexpr std::int64_t int8_quants(std::int64_t group) { return group / 2 * 1088 + kLine + group % 2 * 512; }
constexpr std::int64_t int4_scales(std::int64_t group) { return group * 320; }
constexpr std::int64_t int4_mins(std::int64_t group) { return group * 320 + kHalves; }
constexpr std::int64_t int4_quants(std::int64_t group) { return group * 320 + kLine; }

constexpr std::int64_t bytes_of_tile(Format format, std::int64_t groups) {
  switch (format) {
    case Format::fp32: return groups * kGroup * kTile * 4;
    case Format::bf16: return groups * kGroup * kTile * 2;
    case Format::int8: return groups / 2 * 1088 + groups % 2 * 576;
    case Format::int4: break;
  }
  return groups * 320;
}

// Where a row's number of a column is.
constexpr std::int64_t fp32_at(std::int64_t lane, std::int64_t column) { return (column * kTile + lane) * 4; }
constexpr std::int64_t bf16_at(std::int64_t lane, std::int64_t column) {
  return column / 2 * kLine + lane * 4 + column % 2 * 2;
}
constexpr std::int64_t int8_at(std::int64_t lane, std::int64_t column) {
  return int8_quants(column / kGroup) + column % kGroup / 4 * kLine + lane * 4 + column % 4;
}
// The byte that holds the column, in its low half where column % 8 < 4.
constexpr std::int64_t int4_at(std::int64_t lane, std::int64_t column) {
  return int4_quants(column / kGroup) + column % kGroup / 8 * kLine + lane * 4 + column % 4;
}

}  // namespace layercoop::decode
