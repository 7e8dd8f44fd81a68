#include "cpu/dispatch.h"

#if LAYERCOOP_X86

#include "surrogate/vec_avx2.h"
#include "surrogate/kernels_impl.h"

namespace layercoop::surrogate {

const Kernels kAvx2 = make_kernels();

}  // namespace layercoop::surrogate

#endif
