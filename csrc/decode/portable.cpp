#include "decode/dots_portable.h"
#include "decode/kernels.h"

namespace layercoop::decode {
const Level kPortable{{product<Fp32>, product<Bf16Widened>, product<Int8>, product<Int4>}, quantise, narrow_all};
}  // namespace layercoop::decode
