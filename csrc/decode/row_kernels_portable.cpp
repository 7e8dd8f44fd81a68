#include "blocks/lanes_portable.h"
#include "decode/row_kernels_impl.h"

namespace layercoop::decode {
const RowKernels kRowPortable = row_kernels_here();
}  // namespace layercoop::decode
