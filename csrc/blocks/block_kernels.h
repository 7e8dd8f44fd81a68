// The table of blocks.h's kernels. Each works on a range of its items: rows, or for attention pairs of a window and a
// key head.
#pragma once

#include <cstdint>

#include "blocks/blocks.h"
#include "cpu/dispatch.h"

namespace layercoop::blocks {

template <typename Work>
using Kernel = void(const Work& work, std::int64_t begin, std::int64_t end);

template <typename T>
struct KernelsOf {
  Kernel<RmsNorm<T>>* rms_norm;
  Kernel<Rotary<T, T>>* rotary;
  Kernel<Rotary<T, float>>* rotary_by_floats;
  Kernel<Gated<T>>* gated;
  Kernel<Attention<T>>* attention;
  Kernel<Loss<T>>* loss;
};

struct BlockKernels {
  KernelsOf<float> fp32;
  KernelsOf<Bf16> bf16;
};

extern const BlockKernels kBlockKernelsPortable, kBlockKernelsAvx2, kBlockKernelsAvx512, kBlockKernelsNeon;

}  // namespace layercoop::blocks
