#include "simd/floats_portable.h"

#include "blocks/slope_kernels_impl.h"

namespace layercoop::blocks {
const SlopeKernels kSlopeKernelsPortable{slope_kernels_of<float>(), slope_kernels_of<Bf16>()};
}  // namespace layercoop::blocks
