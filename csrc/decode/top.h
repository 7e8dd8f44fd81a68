// The largest of many numbers.
#pragma once

#include <cstdint>

#include "decode/row_kernels.h"

namespace layercoop::decode {

// The n largest of `width` numbers, descending, of equal ones the earlier first; NaN is none of them. Returns how many
// there are. n is at least 1.
std::int64_t top(const RowKernels& kernels, const float* x, std::int64_t width, std::int64_t n, float* values,
                 std::int64_t* places);

}  // namespace layercoop::decode
