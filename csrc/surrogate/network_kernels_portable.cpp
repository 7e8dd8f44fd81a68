#include "surrogate/vec_portable.h"

#include "surrogate/network_kernels_impl.h"

namespace layercoop::surrogate {

const NetworkKernels kNetworkKernelsPortable = make_network_kernels();

}  // namespace layercoop::surrogate
