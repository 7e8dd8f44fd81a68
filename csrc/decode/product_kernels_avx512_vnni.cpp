#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#define LAYERCOOP_TARGET LAYERCOOP_AVX512_VNNI
#define LAYERCOOP_VNNI
#include "decode/dots_avx512.h"

#include "decode/product_kernels_impl.h"

namespace layercoop::decode {
Product* const kInt8Dots = product<Int8>;
Product* const kInt4Dots = product<Int4>;
}  // namespace layercoop::decode

#endif
