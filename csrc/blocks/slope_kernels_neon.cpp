#include "cpu/dispatch.h"
#if LAYERCOOP_ARM

#include "simd/floats_neon.h"

#include "blocks/slope_kernels_impl.h"

namespace layercoop::blocks {
const SlopeKernels kSlopeKernelsNeon{slope_kernels_of<float>(), slope_kernels_of<Bf16>()};
}  // namespace layercoop::blocks

#endif
