#include "decode/top.h"

#include <algorithm>

namespace layercoop::decode {

std::int64_t top(const RowKernels& kernels, const float* x, std::int64_t width, std::int64_t n, float* values,
                 std::int64_t* places) {
  // Few numbers belong to the n largest so far, so most pieces are skipped after a look at their largest number.
  constexpr std::int64_t piece = 64;
  std::int64_t found = 0;
  for (std::int64_t begin = 0; begin < width; begin += piece) {
    const std::int64_t end = std::min(width, begin + piece);
    if (found == n && !(x[begin + kernels.largest(x + begin, end - begin)] > values[n - 1])) continue;
    for (std::int64_t i = begin; i < end; ++i) {
      if (found == n ? !(x[i] > values[n - 1]) : x[i] != x[i]) continue;
      std::int64_t at = found < n ? found++ : n - 1;
      for (; at > 0 && x[i] > values[at - 1]; --at) {
        values[at] = values[at - 1];
        places[at] = places[at - 1];
      }
      values[at] = x[i];
      places[at] = i;
    }
  }
  return found;
}

}  // namespace layercoop::decode
