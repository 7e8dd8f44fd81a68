#include "simd/floats_portable.h"

#include "decode/row_kernels_impl.h"

namespace layercoop::decode {
const RowKernels kRowKernelsPortable = make_row_kernels();
}  // namespace layercoop::decode
