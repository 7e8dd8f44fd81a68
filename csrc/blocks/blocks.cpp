#include "blocks/blocks.h"

#include <type_traits>

#include "blocks/block_kernels.h"
#include "blocks/share.h"
#include "cpu/dispatch.h"

namespace layercoop::blocks {
namespace {

constexpr cpu::Versions<const BlockKernels> kVersions = LAYERCOOP_VERSIONS(kBlockKernels);

template <typename T>
const KernelsOf<T>& kernels() {
  return kernels_of_type<T>(*kVersions.get());
}

}  // namespace

template <typename T>
void run(const RmsNorm<T>& work) {
  share(kernels<T>().rms_norm, work, work.rows, work.width);
}

template <typename T, typename Angle>
void run(const Rotary<T, Angle>& work) {
  Kernel<Rotary<T, Angle>>* kernel;
  if constexpr (std::is_same_v<T, Angle>) {
    kernel = kernels<T>().rotary;
  } else {
    kernel = kernels<T>().rotary_by_floats;
  }
  share(kernel, work, work.rows, (work.query_heads + work.key_heads) * work.width);
}

template <typename T>
void run(const Gated<T>& work) {
  share(kernels<T>().gated, work, work.rows, 2 * work.width);
}

template <typename T>
void run(const Attention<T>& work) {
  // An item takes some hundred microseconds: one at a time, so that threads finish together.
  share(kernels<T>().attention, work, work.windows * work.kv_heads, kNumbersPerRange);
}

template <typename T>
void run(const Loss<T>& work) {
  share(kernels<T>().loss, work, work.rows, work.columns);
}

template void run(const RmsNorm<float>&);
template void run(const RmsNorm<Bf16>&);
template void run(const Rotary<float, float>&);
template void run(const Rotary<Bf16, Bf16>&);
template void run(const Rotary<Bf16, float>&);
template void run(const Gated<float>&);
template void run(const Gated<Bf16>&);
template void run(const Attention<float>&);
template void run(const Attention<Bf16>&);
template void run(const Loss<float>&);
template void run(const Loss<Bf16>&);

}  // namespace layercoop::blocks
