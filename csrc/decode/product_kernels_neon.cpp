#include "cpu/dispatch.h"
#if LAYERCOOP_ARM

#include "decode/dots_neon.h"

#include "decode/product_kernels_impl.h"

namespace layercoop::decode {
const ProductKernels kProductKernelsNeon{
    {product<Fp32>, product<Bf16Widened>, product<Int8>, product<Int4>}, quantise, narrow_all, widen_all};
}  // namespace layercoop::decode

#endif
