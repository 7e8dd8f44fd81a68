#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#include "surrogate/vec_avx512.h"

#include "surrogate/network_kernels_impl.h"

namespace layercoop::surrogate {

const NetworkKernels kNetworkKernelsAvx512 = make_network_kernels();

}  // namespace layercoop::surrogate

#endif
