// Weights to integers, a group of kGroup columns at a time, by rounding to nearest with the scale of least squared
// error; and grids recognised: where the weights came from a file of integers, those integers and scales come out
// again.
#pragma once

#include <cstdint>

namespace layercoop::decode {

constexpr std::int64_t kGroup = 32;  // columns

// What the weights were last rounded to: a grid is recognised by which numbers scale * q (+ min) could have become
// them.
enum class Origin { fp32, bf16, fp16 };

// weights [rows, columns] -> q [rows, columns], scales [rows, ceil(columns / kGroup)] as fp16 bits, so that
// w ~ scale * q with q in -127..127. On a grid: every weight is exactly scale * q rounded to the origin.
// Throws std::invalid_argument where a weight is not finite or a scale is beyond fp16.
void quantise_int8(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::int8_t* q,
                   std::uint16_t* scales);

// The same for w ~ scale * q + min with q in 0..15.
void quantise_int4(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::uint8_t* q,
                   std::uint16_t* scales, std::uint16_t* mins);

}  // namespace layercoop::decode
