// The kernels of blocks.h once an instruction set. Each takes a range of its work's items: rows, or for attention pairs
// of window and key head.
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
  Kernel<Rotary<T>>* rotary;
  Kernel<Swiglu<T>>* swiglu;
  Kernel<Attention<T>>* attention;
  Kernel<Loss<T>>* loss;
};

struct BlockKernels {
  KernelsOf<float> fp32;
  KernelsOf<Bf16> bf16;
};

extern const BlockKernels kBlockKernelsPortable, kBlockKernelsAvx2, kBlockKernelsAvx512;

}  // namespace layercoop::blocks
