#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "blocks/lanes_avx512.h"
#include "decode/row_kernels_impl.h"

namespace layercoop::decode {
const RowKernels kRowAvx512 = row_kernels_here();
}  // namespace layercoop::decode

#endif
