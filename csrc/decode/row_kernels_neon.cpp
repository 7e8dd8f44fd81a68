#include "cpu/dispatch.h"
#if LAYERCOOP_ARM

#include "simd/floats_neon.h"

#include "decode/row_kernels_impl.h"

namespace layercoop::decode {
const RowKernels kRowKernelsNeon = make_row_kernels();
}  // namespace layercoop::decode

#endif
