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
#elif LAYERCOOP_ARM
constexpr cpu::Versions<const QuantiseKernels> kVersions{&kQuantiseKernelsPortable, &kQuantiseKernelsNeon};
#else
constexpr cpu::Versions<const QuantiseKernels> kVersions{&kQuantiseKernelsPortable};
#endif

void read_group(const QuantiseKernels& kernels, const float* weights, std::int64_t count, Group& group) {
  const std::int64_t n = std::min(count, kGroup);
  std::copy(weights, weights + n, group.w);
  std::fill(group.w + n, group.w + kGroup, weights[0]);
  if (!kernels.measure(static_cast<int>(n), group)) throw std::invalid_argument("weights: not all are finite");
}

// Calls quantise(kernels, group, column, number) for each group of each row: where its columns begin among the weights,
// and its number among the groups.
template <typename Function>
void by_groups(const float* weights, std::int64_t rows, std::int64_t columns, const Function& quantise) {
  const QuantiseKernels& kernels = *kVersions.get();
  const std::int64_t groups = (columns + kGroup - 1) / kGroup;
  Group group;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t at = row * columns + g * kGroup;
      read_group(kernels, weights + at, columns - g * kGroup, group);
      quantise(kernels, group, at, row * groups + g);
    }
  }
}

}  // namespace

void quantise_int8(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::int8_t* q,
                   std::uint16_t* scales) {
  by_groups(weights, rows, columns,
            [&](const QuantiseKernels& kernels, const Group& group, std::int64_t column, std::int64_t number) {
              std::int8_t found[kGroup];
              std::uint16_t& scale = scales[number];
              if (!find_grid_int8(kernels, group, origin, found, scale)) {
                scale = to_half(kernels.best_int8(group, found).scale);
              }
              std::copy(found, found + group.n, q + column);
            });
}

void quantise_int4(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::uint8_t* q,
                   std::uint16_t* scales, std::uint16_t* mins) {
  by_groups(weights, rows, columns,
            [&](const QuantiseKernels& kernels, const Group& group, std::int64_t column, std::int64_t number) {
              std::uint8_t found[kGroup];
              std::uint16_t& scale = scales[number];
              std::uint16_t& low = mins[number];
              if (!find_grid_int4(kernels, group, origin, found, scale, low)) {
                const Line line = kernels.best_int4(group, found);
                scale = to_half(line.scale);
                low = to_half(line.low);
              }
              std::copy(found, found + group.n, q + column);
            });
}

}  // namespace layercoop::decode
