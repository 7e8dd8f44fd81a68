#include "simd/floats_portable.h"

#include "blocks/block_kernels_impl.h"

namespace layercoop::blocks {
const BlockKernels kBlockKernelsPortable{kernels_of<float>(), kernels_of<Bf16>()};
}  // namespace layercoop::blocks
