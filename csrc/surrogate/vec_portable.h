// 4 floats in one 128-bit register of any machine: the readable definition of the operations that kernels_impl.h uses.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define LAYERCOOP_TARGET

namespace layercoop::surrogate {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef std::int32_t Int4 __attribute__((vector_size(16)));

struct V {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;
  Float4 x;

  static V load(const float* p) {
    V v;
    std::memcpy(&v.x, p, sizeof(v.x));
    return v;
  }
  static V fill(float value) { return {Float4{value, value, value, value}}; }
  void store(float* p) const { std::memcpy(p, &x, sizeof(x)); }
};

inline V operator+(V a, V b) { return {a.x + b.x}; }
inline V operator-(V a, V b) { return {a.x - b.x}; }
inline V operator*(V a, V b) { return {a.x * b.x}; }
inline V operator/(V a, V b) { return {a.x / b.x}; }
inline V fma(V a, V b, V c) { return {a.x * b.x + c.x}; }
inline V max(V a, V b) { return {a.x > b.x ? a.x : b.x}; }
inline V min(V a, V b) { return {a.x < b.x ? a.x : b.x}; }

inline bool any_at_least(V a, V b) {
  const Int4 lanes = a.x >= b.x;
  return (lanes[0] | lanes[1] | lanes[2] | lanes[3]) != 0;
}

inline float sum(V a) { return (a.x[0] + a.x[2]) + (a.x[1] + a.x[3]); }

// out[0..3] = constant + the sums of four vectors.
inline void sum4(V a, V b, V c, V d, float constant, float* out) {
  const V sums[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) out[i] = constant + sum(sums[i]);
}

// s·(CELU(x) + 1) for s > 0, given linear = s·(x + 1) and factor_a·factor_b = s·e^x, which may be infinite where x > 0.
inline V celu_term(V linear, V factor_a, V factor_b, V scale) {
  const Float4 curve = factor_a.x * factor_b.x;
  return {linear.x < scale.x ? curve : linear.x};
}

// To the nearest integer, for |a| < 2^22: there the sum has no bits left below 1.
inline V round(V a) {
  const V magic = V::fill(12582912.0f);
  return (a + magic) - magic;
}

// a·2^k for an integral k; neither a nor the result may be subnormal.
inline V scale_by_power_of_two(V a, V exponent) {
  const Int4 bits = (Int4)a.x + (__builtin_convertvector(exponent.x, Int4) << 23);
  return {(Float4)bits};
}

}  // namespace
}  // namespace layercoop::surrogate
