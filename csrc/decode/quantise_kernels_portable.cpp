#define LAYERCOOP_TARGET

#include "decode/quantise_lanes.h"

#if LAYERCOOP_X86
#include <immintrin.h>
#endif

namespace layercoop::decode {
namespace {

// Four numbers that compilers know to work on at once, everywhere.
using Part = float __attribute__((vector_size(16)));
using Bits = std::uint32_t __attribute__((vector_size(16)));
constexpr int kPart = 4;
using Values = Part[kGroup / kPart];

LAYERCOOP_INLINE std::uint32_t signs(Bits mask) {
#if LAYERCOOP_X86
  return static_cast<std::uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  return mask[0] >> 31 | mask[1] >> 31 << 1 | mask[2] >> 31 << 2 | mask[3] >> 31 << 3;
#endif
}

LAYERCOOP_INLINE Part smaller(Part x, Part y) { return x < y ? x : y; }
LAYERCOOP_INLINE Part larger(Part x, Part y) { return x > y ? x : y; }

// Numbers to fp16 and back: one, or eight.
LAYERCOOP_INLINE float half_of(float x) { return from_half(to_half(x)); }
LAYERCOOP_INLINE void halves(float* x) {
  for (int i = 0; i < 8; ++i) x[i] = half_of(x[i]);
}

LAYERCOOP_INLINE float sum(const Values& x) {
  const Part four = ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
  return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace
}  // namespace layercoop::decode

#include "decode/grids_impl.h"

namespace layercoop::decode {
const QuantiseKernels kQuantiseKernelsPortable = make_quantise_kernels();
}  // namespace layercoop::decode
