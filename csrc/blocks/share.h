// A kernel's items, shared among the pool's threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blocks/block_kernels.h"
#include "cpu/pool.h"

namespace layercoop::blocks {

// Numbers that a thread takes at a time: some tens of microseconds of work, so that waking it pays.
constexpr std::int64_t kNumbersPerRange = 1 << 16;

template <typename Work>
void share(Kernel<Work>* kernel, const Work& work, std::int64_t items, std::int64_t numbers_per_item) {
  const std::int64_t grain = std::max<std::int64_t>(1, kNumbersPerRange / std::max<std::int64_t>(1, numbers_per_item));
  cpu::parallel_for(items, grain, [&](std::int64_t begin, std::int64_t end) { kernel(work, begin, end); });
}

}  // namespace layercoop::blocks
