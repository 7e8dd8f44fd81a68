// Quantises weights to integers, a group of kGroup columns at a time, by rounding to nearest with the scale of least
// squared error. Grids are recognised: for weights that were dequantised, the original integers and scales result.
#pragma once

#include <cstdint>

namespace layercoop::decode {

constexpr std::int64_t kGroup = 32;  // columns

// The format that the weights were last rounded to. A grid fits if scale * q (+ min), rounded to it, gives the weights.
enum class Origin { fp32, bf16, fp16 };

// weights [rows, columns] -> q [rows, columns], scales [rows, ceil(columns / kGroup)] as fp16 bits, so that
// w ~ scale * q with q in -127..127. If the weights are a grid, each is exactly scale * q rounded to the origin.
// Throws std::invalid_argument where a weight is not finite or a scale is beyond fp16.
void quantise_int8(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::int8_t* q,
                   std::uint16_t* scales);

// The same for w ~ scale * q + min with q in 0..15.
void quantise_int4(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::uint8_t* q,
                   std::uint16_t* scales, std::uint16_t* mins);

}  // namespace layercoop::decode
