// The tables of the networks, on cache lines.
#pragma once

#include "cpu/aligned.h"

namespace layercoop::surrogate {

using Floats = cpu::Aligned<float>;
using Doubles = cpu::Aligned<double>;

}  // namespace layercoop::surrogate
