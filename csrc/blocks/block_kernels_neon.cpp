#include "cpu/dispatch.h"
#if LAYERCOOP_ARM

#include "simd/floats_neon.h"

#include "blocks/block_kernels_impl.h"

namespace layercoop::blocks {
const BlockKernels kBlockKernelsNeon{kernels_of<float>(), kernels_of<Bf16>()};
}  // namespace layercoop::blocks

#endif
