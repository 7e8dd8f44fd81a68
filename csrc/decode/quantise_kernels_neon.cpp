#include "cpu/dispatch.h"
#if LAYERCOOP_ARM

#include "simd/floats_neon.h"

namespace layercoop::decode {
namespace {

// The sign of each lane, as a bit.
LAYERCOOP_INLINE std::uint32_t signs(simd::Floats a) {
  const std::int32_t places[] = {0, 1, 2, 3};
  return vaddvq_u32(vshlq_u32(vshrq_n_u32(vreinterpretq_u32_f32(a.x), 31), vld1q_s32(places)));
}

// Numbers to fp16 and back: one, or eight.
LAYERCOOP_INLINE float half_of(float x) { return vgetq_lane_f32(vcvt_f32_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0); }
LAYERCOOP_INLINE void halves(float* x) {
  for (int i = 0; i < 8; i += 4) vst1q_f32(x + i, vcvt_f32_f16(vcvt_f16_f32(vld1q_f32(x + i))));
}

}  // namespace
}  // namespace layercoop::decode

#include "decode/quantise_kernels_impl.h"

namespace layercoop::decode {
const QuantiseKernels kQuantiseKernelsNeon = make_quantise_kernels();
}  // namespace layercoop::decode

#endif
