// Weights that were dequantised: finds integers and scales that give exactly these weights.
#pragma once

#include <cstdint>

#include "decode/quantise_kernels.h"

namespace layercoop::decode {

// Whether each of the group's weights is scale * q (+ min), computed in fp32 and rounded to the origin, for some fp16
// scale (and min) and q in the format's range. If so, writes them, n of q; if several fit, one in the middle.
bool find_grid_int8(const QuantiseKernels& kernels, const Group& group, Origin origin, std::int8_t* q,
                    std::uint16_t& scale);
bool find_grid_int4(const QuantiseKernels& kernels, const Group& group, Origin origin, std::uint8_t* q,
                    std::uint16_t& scale, std::uint16_t& low);

}  // namespace layercoop::decode
