#include "blocks/lanes_portable.h"
#include "blocks/kernels.h"

namespace layercoop::blocks {
const Level kPortable{kernels_of<float>(), kernels_of<Bf16>()};
}  // namespace layercoop::blocks
