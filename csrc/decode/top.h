// The largest numbers of a row.
#pragma once

#include <cstdint>

#include "decode/row_kernels.h"

namespace layercoop::decode {

// Writes the n largest of `width` numbers in descending order, the earlier first among equals, and their indices. NaN
// is skipped. Returns how many were written. n is at least 1.
std::int64_t top(const RowKernels& kernels, const float* x, std::int64_t width, std::int64_t n, float* values,
                 std::int64_t* places);

}  // namespace layercoop::decode
