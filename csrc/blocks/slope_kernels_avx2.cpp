#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "simd/floats_avx2.h"

#include "blocks/slope_kernels_impl.h"

namespace layercoop::blocks {
const SlopeKernels kSlopeKernelsAvx2{slope_kernels_of<float>(), slope_kernels_of<Bf16>()};
}  // namespace layercoop::blocks

#endif
