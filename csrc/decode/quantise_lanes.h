// What both versions of the kernels of quantise_kernels.h start from; the including file has defined QUANTISE_TARGET.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "half.h"
#include "decode/quantise_kernels.h"

#define QUANTISE_INLINE QUANTISE_TARGET __attribute__((always_inline)) inline
