#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "blocks/lanes_avx2.h"
#include "decode/row_kernels_impl.h"

namespace layercoop::decode {
const RowKernels kRowAvx2 = row_kernels_here();
}  // namespace layercoop::decode

#endif
