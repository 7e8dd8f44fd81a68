// The table of slopes.h's kernels. Each works on a range of its items: rows; for the slopes of a norm's weight
// groups of kWeightColumns columns; for those of attention pairs of a window and a key head; for AdamW numbers, and
// for squares their sums.
#pragma once

#include <cstdint>

#include "blocks/block_kernels.h"
#include "blocks/slopes.h"

namespace layercoop::blocks {

constexpr std::int64_t kWeightColumns = 64;

template <typename T>
struct SlopeKernelsOf {
  Kernel<GatedSlopes<T>>* gated;
  Kernel<NormSlopes<T>>* norm;
  Kernel<NormWeightSlopes<T>>* norm_weight;
  Kernel<AttentionSlopes<T>>* attention;
  Kernel<Divergence<T>>* divergence;
  Kernel<NamedDivergence<T>>* named_divergence;
  Kernel<AdamW<T>>* adamw;
  Kernel<SumsOfSquares<T>>* squares;
};

struct SlopeKernels {
  SlopeKernelsOf<float> fp32;
  SlopeKernelsOf<Bf16> bf16;
};

extern const SlopeKernels kSlopeKernelsPortable, kSlopeKernelsAvx2, kSlopeKernelsAvx512, kSlopeKernelsNeon;

}  // namespace layercoop::blocks
