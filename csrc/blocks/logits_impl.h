// Rows of logits, over the vectors that the including file has chosen.
#pragma once

#include <cstdint>

#include "simd/functions.h"

namespace layercoop::blocks {
namespace {

using namespace simd;

// z = scale * logit, softly capped; returns the largest. tanh(u) = 1 - 2 / (exp(2u) + 1).
template <typename T>
LAYERCOOP_INLINE float scaled_logits(const T* logits, std::int64_t columns, float scale, float cap, float* z) {
  Floats16 most = kLowest;
  for (std::int64_t j = 0; j < columns; j += kLanes) {
    const int n = lanes_left(j, columns);
    Floats16 x = read(logits + j, n) * scale;
    if (cap != 0.0f) {
      const Floats16 e = exp(x * (2.0f / cap));
      x = cap * (1.0f - 2.0f / (e + 1.0f));
    }
    store(z + j, x);
    most = max(select_first(n, x, kLowest), most);
  }
  return largest(most);
}

}  // namespace
}  // namespace layercoop::blocks
