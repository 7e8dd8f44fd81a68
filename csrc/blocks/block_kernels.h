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

extern const BlockKernels kBlockKernelsPortable;
#if LAYERCOOP_X86
extern const BlockKernels kBlockKernelsAvx2;
extern const BlockKernels kBlockKernelsAvx512;
#endif

}  // namespace layercoop::blocks
