#include "blocks/slopes.h"

#include "blocks/share.h"
#include "blocks/slope_kernels.h"
#include "cpu/dispatch.h"

namespace layercoop::blocks {
namespace {

constexpr cpu::Versions<const SlopeKernels> kVersions = LAYERCOOP_VERSIONS(kSlopeKernels);

// Rows of logits that a thread takes at a time: the memory that it asks for serves them all.
constexpr std::int64_t kRowsOfLogits = 4;

template <typename T>
const SlopeKernelsOf<T>& kernels() {
  return kernels_of_type<T>(*kVersions.get());
}

}  // namespace

template <typename T>
void run(const GatedSlopes<T>& work) {
  share(kernels<T>().gated, work, work.rows, 3 * work.width);
}

template <typename T>
void run(const NormSlopes<T>& work) {
  share(kernels<T>().norm, work, work.rows, 2 * work.width);
}

template <typename T>
void run(const NormWeightSlopes<T>& work) {
  share(kernels<T>().norm_weight, work, (work.width + kWeightColumns - 1) / kWeightColumns,
        2 * work.rows * kWeightColumns);
}

template <typename T>
void run(const AttentionSlopes<T>& work) {
  // An item takes some hundred microseconds: one at a time, so that threads finish together.
  share(kernels<T>().attention, work, work.windows * work.kv_heads, kNumbersPerRange);
}

template <typename T>
void run(const Divergence<T>& work) {
  share(kernels<T>().divergence, work, work.rows, 2 * work.columns, kRowsOfLogits);
}

template <typename T>
void run(const NamedDivergence<T>& work) {
  share(kernels<T>().named_divergence, work, work.rows, work.columns, kRowsOfLogits);
}

template <typename T>
void run(const AdamW<T>& work) {
  share(kernels<T>().adamw, work, work.n, 1);
}

template <typename T>
void run(const SumsOfSquares<T>& work) {
  share(kernels<T>().squares, work, (work.n + kSquaresAtOnce - 1) / kSquaresAtOnce, kSquaresAtOnce);
}

template void run(const GatedSlopes<float>&);
template void run(const GatedSlopes<Bf16>&);
template void run(const NormSlopes<float>&);
template void run(const NormSlopes<Bf16>&);
template void run(const NormWeightSlopes<float>&);
template void run(const NormWeightSlopes<Bf16>&);
template void run(const AttentionSlopes<float>&);
template void run(const AttentionSlopes<Bf16>&);
template void run(const Divergence<float>&);
template void run(const Divergence<Bf16>&);
template void run(const NamedDivergence<float>&);
template void run(const NamedDivergence<Bf16>&);
template void run(const AdamW<float>&);
template void run(const AdamW<Bf16>&);
template void run(const SumsOfSquares<float>&);
template void run(const SumsOfSquares<Bf16>&);

}  // namespace layercoop::blocks
