#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "decode/dots_avx512.h"
#include "decode/kernels.h"

namespace layercoop::decode {
const Level kAvx512{{product<Fp32>, product<Bf16Widened>, product<Int8>, product<Int4>}, quantise, narrow_all};
}  // namespace layercoop::decode

#endif
