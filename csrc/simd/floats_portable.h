// Sixteen fp32 lanes in plain C++: what the kernels in the kernels are written over, and the meaning of the same
// functions in floats_avx2.h and floats_avx512.h. One of the three is included before the kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

#define LAYERCOOP_TARGET
#define LAYERCOOP_INLINE inline

namespace layercoop::simd {
namespace {

struct Lanes {
  float at[16];
};
constexpr int kTileVectors = 1;  // of the product in attention: how many vectors of sums a row keeps at once

LAYERCOOP_INLINE Lanes splat(float x) {
  Lanes y;
  for (float& lane : y.at) lane = x;
  return y;
}
LAYERCOOP_INLINE Lanes add(Lanes a, Lanes b) {
  for (int i = 0; i < 16; ++i) a.at[i] += b.at[i];
  return a;
}
LAYERCOOP_INLINE Lanes sub(Lanes a, Lanes b) {
  for (int i = 0; i < 16; ++i) a.at[i] -= b.at[i];
  return a;
}
LAYERCOOP_INLINE Lanes mul(Lanes a, Lanes b) {
  for (int i = 0; i < 16; ++i) a.at[i] *= b.at[i];
  return a;
}
LAYERCOOP_INLINE Lanes div(Lanes a, Lanes b) {
  for (int i = 0; i < 16; ++i) a.at[i] /= b.at[i];
  return a;
}
// a * b + c, in one rounding where the machine has it.
LAYERCOOP_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return add(mul(a, b), c); }
// The larger of the two, `kept` where `a` is NaN.
LAYERCOOP_INLINE Lanes larger(Lanes a, Lanes kept) {
  for (int i = 0; i < 16; ++i) a.at[i] = a.at[i] > kept.at[i] ? a.at[i] : kept.at[i];
  return a;
}
// x within a bound; NaN stays NaN.
LAYERCOOP_INLINE Lanes at_least(Lanes x, float low) {
  for (float& lane : x.at) lane = lane < low ? low : lane;
  return x;
}
LAYERCOOP_INLINE Lanes at_most(Lanes x, float high) {
  for (float& lane : x.at) lane = lane > high ? high : lane;
  return x;
}
// x rounded to an integer, for |x| < 2^22: the sum has no bits left for a fraction.
LAYERCOOP_INLINE Lanes nearest(Lanes x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  for (float& lane : x.at) lane = (lane + magic) - magic;
  return x;
}
// 2^n for a whole n in -126..127; any finite number or NaN where n is NaN.
LAYERCOOP_INLINE Lanes power_of_two(Lanes n) {
  for (float& lane : n.at) {
    const std::uint32_t bits = static_cast<std::uint32_t>(lane == lane ? static_cast<int>(lane) + 127 : 127) << 23;
    std::memcpy(&lane, &bits, sizeof(lane));
  }
  return n;
}

// The first n lanes of a, the others of b.
LAYERCOOP_INLINE Lanes select_first(int n, Lanes a, Lanes b) {
  for (int i = 0; i < 16; ++i) a.at[i] = i < n ? a.at[i] : b.at[i];
  return a;
}
LAYERCOOP_INLINE float total(Lanes x) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x.at[i] += x.at[i + width];
  }
  return x.at[0];
}
LAYERCOOP_INLINE float largest(Lanes x) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x.at[i] = x.at[i] > x.at[i + width] ? x.at[i] : x.at[i + width];
  }
  return x.at[0];
}

LAYERCOOP_INLINE float widen(Bf16 half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half.bits) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
LAYERCOOP_INLINE Bf16 narrow(float x) {
  if (x != x) return {0x7fc0};
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  return {static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// Lanes past the first n are 0.
LAYERCOOP_INLINE Lanes load_first(const float* p, int n) {
  Lanes x = splat(0.0f);
  for (int i = 0; i < n; ++i) x.at[i] = p[i];
  return x;
}
LAYERCOOP_INLINE Lanes load_first(const Bf16* p, int n) {
  Lanes x = splat(0.0f);
  for (int i = 0; i < n; ++i) x.at[i] = widen(p[i]);
  return x;
}
LAYERCOOP_INLINE Lanes load_first(const Fp16* p, int n) {
  Lanes x = splat(0.0f);
  for (int i = 0; i < n; ++i) x.at[i] = from_half(p[i].bits);
  return x;
}
LAYERCOOP_INLINE Lanes load_first(const std::int8_t* p, int n) {
  Lanes x = splat(0.0f);
  for (int i = 0; i < n; ++i) x.at[i] = p[i];
  return x;
}
LAYERCOOP_INLINE void store_first(float* p, int n, Lanes x) {
  for (int i = 0; i < n; ++i) p[i] = x.at[i];
}
LAYERCOOP_INLINE void store_first(Bf16* p, int n, Lanes x) {
  for (int i = 0; i < n; ++i) p[i] = narrow(x.at[i]);
}
LAYERCOOP_INLINE void store_first(Fp16* p, int n, Lanes x) {
  for (int i = 0; i < n; ++i) p[i] = {to_half(x.at[i])};
}
template <typename T>
LAYERCOOP_INLINE Lanes load(const T* p) {
  return load_first(p, 16);
}
template <typename T>
LAYERCOOP_INLINE void store(T* p, Lanes x) {
  store_first(p, 16, x);
}
// x as it would read back from memory of the type pointed to.
LAYERCOOP_INLINE Lanes rounded(Lanes x, const float*) { return x; }
LAYERCOOP_INLINE Lanes rounded(Lanes x, const Bf16*) {
  for (float& lane : x.at) lane = widen(narrow(lane));
  return x;
}

}  // namespace
}  // namespace layercoop::simd
