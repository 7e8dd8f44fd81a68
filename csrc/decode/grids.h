// Weights that were integers once: the integers and scales that give them back exactly.
#pragma once

#include <cstdint>

#include "decode/quantise.h"

namespace layercoop::decode {

// Whether each of the n (1..kGroup) finite weights is scale * q (+ min), computed in fp32 and rounded to the origin, for
// some fp16 scale (and min) and q in the format's range; if so, writes them. Of several that fit, one in the middle.
bool find_grid_int8(const float* w, int n, Origin origin, std::int8_t* q, std::uint16_t& scale);
bool find_grid_int4(const float* w, int n, Origin origin, std::uint8_t* q, std::uint16_t& scale, std::uint16_t& low);

}  // namespace layercoop::decode
