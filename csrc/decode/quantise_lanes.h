// What both versions of the kernels of quantise_kernels.h start from; the including file has defined LAYERCOOP_TARGET.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "decode/quantise_kernels.h"
#include "half.h"

#define LAYERCOOP_INLINE LAYERCOOP_TARGET __attribute__((always_inline)) inline
