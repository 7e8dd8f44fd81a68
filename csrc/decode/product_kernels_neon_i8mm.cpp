#include "cpu/dispatch.h"
#if LAYERCOOP_ARM

#define LAYERCOOP_TARGET LAYERCOOP_NEON_I8MM
#define LAYERCOOP_DOTPROD
#define LAYERCOOP_I8MM
#include "decode/dots_neon.h"

#include "decode/product_kernels_impl.h"

namespace layercoop::decode {
Product* const kInt8Matrices = product<Int8>;
Product* const kInt4Matrices = product<Int4>;
}  // namespace layercoop::decode

#endif
