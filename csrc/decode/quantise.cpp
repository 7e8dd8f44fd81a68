#include "decode/quantise.h"

#include <algorithm>
#include <stdexcept>

#include "decode/grids.h"
#include "decode/quantise_kernels.h"
#include "half.h"

namespace layercoop::decode {
namespace {

#if LAYERCOOP_X86
constexpr cpu::Versions<const QuantiseKernels> kVersions{&kQuantiseKernelsPortable, &kQuantiseKernelsAvx2};
#else
constexpr cpu::Versions<const QuantiseKernels> kVersions{&kQuantiseKernelsPortable};
#endif

void read_group(const QuantiseKernels& kernels, const float* weights, std::int64_t count, Group& group) {
  const std::int64_t n = std::min(count, kGroup);
  std::copy(weights, weights + n, group.w);
  std::fill(group.w + n, group.w + kGroup, weights[0]);
  if (!kernels.measure(static_cast<int>(n), group)) throw std::invalid_argument("weights: not all are finite");
}

}  // namespace

void quantise_int8(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::int8_t* q,
                   std::uint16_t* scales) {
  const QuantiseKernels& kernels = *kVersions.get();
  const std::int64_t groups = (columns + kGroup - 1) / kGroup;
  Group group;
  std::int8_t found[kGroup];
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t at = row * columns + g * kGroup;
      read_group(kernels, weights + at, columns - g * kGroup, group);
      std::uint16_t& scale = scales[row * groups + g];
      if (!find_grid_int8(kernels, group, origin, found, scale)) scale = to_half(kernels.best_int8(group, found).scale);
      std::copy(found, found + group.n, q + at);
    }
  }
}

void quantise_int4(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::uint8_t* q,
                   std::uint16_t* scales, std::uint16_t* mins) {
  const QuantiseKernels& kernels = *kVersions.get();
  const std::int64_t groups = (columns + kGroup - 1) / kGroup;
  Group group;
  std::uint8_t found[kGroup];
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t at = row * columns + g * kGroup;
      read_group(kernels, weights + at, columns - g * kGroup, group);
      std::uint16_t& scale = scales[row * groups + g];
      std::uint16_t& low = mins[row * groups + g];
      if (!find_grid_int4(kernels, group, origin, found, scale, low)) {
        const Line line = kernels.best_int4(group, found);
        scale = to_half(line.scale);
        low = to_half(line.low);
      }
      std::copy(found, found + group.n, q + at);
    }
  }
}

}  // namespace layercoop::decode
