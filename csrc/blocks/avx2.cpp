#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "blocks/lanes_avx2.h"
#include "blocks/kernels.h"

namespace layercoop::blocks {
const Level kAvx2{kernels_of<float>(), kernels_of<Bf16>()};
}  // namespace layercoop::blocks

#endif
