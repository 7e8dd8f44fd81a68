// What the callers of kernels have in common: the kernels of a type, and items shared among the pool's threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "blocks/block_kernels.h"
#include "cpu/pool.h"

namespace layercoop::blocks {

// Numbers that a thread takes at a time: some tens of microseconds of work, so that waking it pays.
constexpr std::int64_t kNumbersPerRange = 1 << 16;

// The kernels for numbers of type T of a table.
template <typename T, typename Table>
const auto& kernels_of_type(const Table& table) {
  if constexpr (std::is_same_v<T, float>) {
    return table.fp32;
  } else {
    return table.bf16;
  }
}

// A range has `least` items at least, but for the last.
template <typename Work>
void share(Kernel<Work>* kernel, const Work& work, std::int64_t items, std::int64_t numbers_per_item,
           std::int64_t least = 1) {
  const std::int64_t grain = std::max(least, kNumbersPerRange / std::max<std::int64_t>(1, numbers_per_item));
  cpu::parallel_for(items, grain, [&](std::int64_t begin, std::int64_t end) { kernel(work, begin, end); });
}

}  // namespace layercoop::blocks
