#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "simd/floats_avx512.h"

#include "blocks/block_kernels_impl.h"

namespace layercoop::blocks {
const BlockKernels kBlockKernelsAvx512{kernels_of<float>(), kernels_of<Bf16>()};
}  // namespace layercoop::blocks

#endif
