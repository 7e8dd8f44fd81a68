#include "cpu/dispatch.h"
#if LAYERCOOP_ARM

#define LAYERCOOP_TARGET LAYERCOOP_NEON_DOTPROD
#define LAYERCOOP_DOTPROD
#include "decode/dots_neon.h"

#include "decode/product_kernels_impl.h"

namespace layercoop::decode {
Product* const kInt8Dots = product<Int8>;
Product* const kInt4Dots = product<Int4>;
}  // namespace layercoop::decode

#endif
