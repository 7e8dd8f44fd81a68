#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "simd/floats_avx2.h"

#include "decode/row_kernels_impl.h"

namespace layercoop::decode {
const RowKernels kRowKernelsAvx2 = make_row_kernels();
}  // namespace layercoop::decode

#endif
