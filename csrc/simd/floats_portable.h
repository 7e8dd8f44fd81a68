// Vectors of floats for any machine: the meaning of the same names in floats_avx2.h and floats_avx512.h. One of the
// three is included before a file of kernels, which is compiled in a copy of its own for each.
//
// `Floats` is what one register holds, `Floats16` sixteen floats, whatever the register. A float converts to a vector
// that holds it in every lane. Functions work lane by lane where nothing else is said.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

#define LAYERCOOP_TARGET
#if defined(__OPTIMIZE__)
#define LAYERCOOP_INLINE __attribute__((always_inline)) inline
#else
#define LAYERCOOP_INLINE inline  // forced inlining makes objects without optimisation ten times as large
#endif

#include "simd/pair.h"

namespace layercoop::simd {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef std::int32_t Int4 __attribute__((vector_size(16)));

struct Floats {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;  // of the machine
  Float4 x;

  Floats() = default;
  LAYERCOOP_INLINE Floats(Float4 lanes) : x(lanes) {}
  LAYERCOOP_INLINE Floats(float value) : x{value, value, value, value} {}

  LAYERCOOP_INLINE static Floats load(const float* p) {
    Floats y;
    std::memcpy(&y.x, p, sizeof(y.x));
    return y;
  }
  LAYERCOOP_INLINE static Floats load(const Bf16* p) {
    return Float4{from_bf16(p[0].bits), from_bf16(p[1].bits), from_bf16(p[2].bits), from_bf16(p[3].bits)};
  }
  LAYERCOOP_INLINE static Floats load(const Fp16* p) {
    return Float4{from_half(p[0].bits), from_half(p[1].bits), from_half(p[2].bits), from_half(p[3].bits)};
  }
  LAYERCOOP_INLINE static Floats load(const std::int8_t* p) {
    return Float4{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                  static_cast<float>(p[3])};
  }
};
using Floats16 = Pair<Pair<Floats>>;

LAYERCOOP_INLINE Floats operator+(Floats a, Floats b) { return a.x + b.x; }
LAYERCOOP_INLINE Floats operator-(Floats a, Floats b) { return a.x - b.x; }
LAYERCOOP_INLINE Floats operator*(Floats a, Floats b) { return a.x * b.x; }
LAYERCOOP_INLINE Floats operator/(Floats a, Floats b) { return a.x / b.x; }
// a * b + c, in one rounding where the machine has it.
LAYERCOOP_INLINE Floats fma(Floats a, Floats b, Floats c) { return a.x * b.x + c.x; }
// Where one is NaN, b.
LAYERCOOP_INLINE Floats max(Floats a, Floats b) { return a.x > b.x ? a.x : b.x; }
LAYERCOOP_INLINE Floats min(Floats a, Floats b) { return a.x < b.x ? a.x : b.x; }
LAYERCOOP_INLINE Floats sqrt(Floats a) {
  return Float4{std::sqrt(a.x[0]), std::sqrt(a.x[1]), std::sqrt(a.x[2]), std::sqrt(a.x[3])};
}
// The nearest integer, for |a| < 2^22: the sum has no bits left for a fraction.
LAYERCOOP_INLINE Floats round(Floats a) {
  const Floats magic = 12582912.0f;  // 1.5 * 2^23
  return (a + magic) - magic;
}
// 2^n for a whole n in -126..127; some number where n is NaN.
LAYERCOOP_INLINE Floats power_of_two(Floats n) {
  const Int4 whole = __builtin_convertvector(n.x == n.x ? n.x : Float4{}, Int4);
  return (Float4)((whole + 127) << 23);
}
// a * 2^n for a whole n; neither a nor the result may be subnormal.
LAYERCOOP_INLINE Floats scale_by_power_of_two(Floats a, Floats n) {
  return (Float4)((Int4)a.x + (__builtin_convertvector(n.x, Int4) << 23));
}
// a in the first n lanes, b in the others; any n.
LAYERCOOP_INLINE Floats select_first(int n, Floats a, Floats b) { return Int4{0, 1, 2, 3} < n ? a.x : b.x; }

LAYERCOOP_INLINE bool any_at_least(Floats a, Floats b) {
  const Int4 lanes = a.x >= b.x;
  return (lanes[0] | lanes[1] | lanes[2] | lanes[3]) != 0;
}
// The sum of all lanes; the largest, some number where one is NaN.
LAYERCOOP_INLINE float total(Floats a) { return (a.x[0] + a.x[2]) + (a.x[1] + a.x[3]); }
LAYERCOOP_INLINE float largest(Floats a) {
  const float even = a.x[0] > a.x[2] ? a.x[0] : a.x[2];
  const float odd = a.x[1] > a.x[3] ? a.x[1] : a.x[3];
  return even > odd ? even : odd;
}
// out[0..3] = constant + the sum of each vector.
LAYERCOOP_INLINE void total4(Floats a, Floats b, Floats c, Floats d, float constant, float* out) {
  const float sums[] = {total(a), total(b), total(c), total(d)};
  for (int i = 0; i < 4; ++i) out[i] = constant + sums[i];
}

LAYERCOOP_INLINE Bf16 narrowed(float x) { return {x != x ? std::uint16_t{0x7fc0} : to_bf16(x)}; }
LAYERCOOP_INLINE void store(float* p, Floats a) { std::memcpy(p, &a.x, sizeof(a.x)); }
LAYERCOOP_INLINE void store(Bf16* p, Floats a) {
  for (int i = 0; i < 4; ++i) p[i] = narrowed(a.x[i]);
}
LAYERCOOP_INLINE void store(Fp16* p, Floats a) {
  for (int i = 0; i < 4; ++i) p[i] = {to_half(a.x[i])};
}
// a as it would come back from memory of the type pointed to.
LAYERCOOP_INLINE Floats rounded(Floats a, const float*) { return a; }
LAYERCOOP_INLINE Floats rounded(Floats a, const Bf16*) {
  for (int i = 0; i < 4; ++i) a.x[i] = from_bf16(narrowed(a.x[i]).bits);
  return a;
}

}  // namespace
}  // namespace layercoop::simd
