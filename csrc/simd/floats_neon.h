// Vectors of floats for ARM's NEON: a register holds four. floats_portable.h says what each function does. An including
// file whose kernels use more than every 64-bit ARM processor has defines LAYERCOOP_TARGET first.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "cpu/dispatch.h"
#include "half.h"

#if !defined(LAYERCOOP_TARGET)
#define LAYERCOOP_TARGET
#endif
#define LAYERCOOP_INLINE LAYERCOOP_TARGET __attribute__((always_inline)) inline

#include "simd/pair.h"

namespace layercoop::simd {
namespace {

struct Floats {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 32;
  float32x4_t x;

  Floats() = default;
  LAYERCOOP_INLINE Floats(float32x4_t lanes) : x(lanes) {}
  LAYERCOOP_INLINE Floats(float value) : x(vdupq_n_f32(value)) {}

  LAYERCOOP_INLINE static Floats load(const float* p) { return vld1q_f32(p); }
  LAYERCOOP_INLINE static Floats load(const Bf16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
  }
  LAYERCOOP_INLINE static Floats load(const Fp16* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
  LAYERCOOP_INLINE static Floats load(const std::int8_t* p) {
    std::uint32_t four;
    std::memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))))));
  }
};
using Floats16 = Pair<Pair<Floats>>;

LAYERCOOP_INLINE Floats operator+(Floats a, Floats b) { return vaddq_f32(a.x, b.x); }
LAYERCOOP_INLINE Floats operator-(Floats a, Floats b) { return vsubq_f32(a.x, b.x); }
LAYERCOOP_INLINE Floats operator*(Floats a, Floats b) { return vmulq_f32(a.x, b.x); }
LAYERCOOP_INLINE Floats operator/(Floats a, Floats b) { return vdivq_f32(a.x, b.x); }
LAYERCOOP_INLINE Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c.x, a.x, b.x); }
// Not vmaxq_f32, which gives NaN where only a is NaN.
LAYERCOOP_INLINE Floats max(Floats a, Floats b) { return vbslq_f32(vcgtq_f32(a.x, b.x), a.x, b.x); }
LAYERCOOP_INLINE Floats min(Floats a, Floats b) { return vbslq_f32(vcltq_f32(a.x, b.x), a.x, b.x); }
LAYERCOOP_INLINE Floats sqrt(Floats a) { return vsqrtq_f32(a.x); }
LAYERCOOP_INLINE Floats round(Floats a) { return vrndnq_f32(a.x); }
LAYERCOOP_INLINE Floats power_of_two(Floats n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.x), vdupq_n_s32(127)), 23));
}
LAYERCOOP_INLINE Floats scale_by_power_of_two(Floats a, Floats n) {
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.x), vshlq_n_s32(vcvtnq_s32_f32(n.x), 23)));
}
LAYERCOOP_INLINE Floats select_first(int n, Floats a, Floats b) {
  const std::int32_t lanes[] = {0, 1, 2, 3};
  return vbslq_f32(vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(n)), a.x, b.x);
}

LAYERCOOP_INLINE bool any_at_least(Floats a, Floats b) { return vmaxvq_u32(vcgeq_f32(a.x, b.x)) != 0; }
// In the order of floats_portable.h.
LAYERCOOP_INLINE float total(Floats a) {
  const float32x2_t two = vadd_f32(vget_low_f32(a.x), vget_high_f32(a.x));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
LAYERCOOP_INLINE float largest(Floats a) { return vmaxnmvq_f32(a.x); }
LAYERCOOP_INLINE void total4(Floats a, Floats b, Floats c, Floats d, float constant, float* out) {
  const float32x4_t sums = vpaddq_f32(vpaddq_f32(a.x, b.x), vpaddq_f32(c.x, d.x));
  vst1q_f32(out, vaddq_f32(vdupq_n_f32(constant), sums));
}

// The upper halves, rounded, above zeros.
LAYERCOOP_INLINE uint32x4_t bf16_bits(Floats a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t kept = vbslq_u32(vceqq_f32(a.x, a.x), rounded, vdupq_n_u32(0x7fc00000));
  return vandq_u32(kept, vdupq_n_u32(0xffff0000));
}
LAYERCOOP_INLINE void store(float* p, Floats a) { vst1q_f32(p, a.x); }
LAYERCOOP_INLINE void store(Bf16* p, Floats a) { vst1_u16(&p->bits, vshrn_n_u32(bf16_bits(a), 16)); }
LAYERCOOP_INLINE void store(Fp16* p, Floats a) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(a.x))); }
LAYERCOOP_INLINE Floats rounded(Floats a, const float*) { return a; }
LAYERCOOP_INLINE Floats rounded(Floats a, const Bf16*) { return vreinterpretq_f32_u32(bf16_bits(a)); }

}  // namespace
}  // namespace layercoop::simd
