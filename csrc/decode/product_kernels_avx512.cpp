#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "decode/dots_avx512.h"

#include "decode/product_kernels_impl.h"

namespace layercoop::decode {
const ProductKernels kProductKernelsAvx512{
    {product<Fp32>, product<Bf16Widened>, product<Int8>, product<Int4>}, quantise, narrow_all, widen_all};
}  // namespace layercoop::decode

#endif
