#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "blocks/lanes_avx512.h"
#include "blocks/kernels.h"

namespace layercoop::blocks {
const Level kAvx512{kernels_of<float>(), kernels_of<Bf16>()};
}  // namespace layercoop::blocks

#endif
