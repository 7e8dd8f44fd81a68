#include "surrogate/vec_portable.h"
#include "surrogate/kernels_impl.h"

namespace layercoop::surrogate {

const Kernels kPortable = make_kernels();

}  // namespace layercoop::surrogate
