// Activations and the sigmoid; a part of network_kernels_impl.h.
#pragma once

#include "surrogate/network_kernels.h"

namespace layercoop::surrogate {
namespace {

using namespace simd;

// e^x, relative error below 2e-7; x is clamped to ±87, where float32 ends.
// e^x = 2^k·e^r with k = round(x / ln 2), |r| <= ln 2 / 2, and e^r = 1 + r + r²·q(r), q fitted by least squares.
LAYERCOOP_INLINE Floats exp(Floats x) {
  x = min(max(x, -87.0f), 87.0f);
  const Floats k = round(x * 1.44269504f);
  Floats r = fma(k, -0.693145752f, x);  // ln 2 in two parts; k times the first is exact
  r = fma(k, -1.42860677e-6f, r);
  Floats q = 0.0013946561f;
  q = fma(q, r, 0.0083692232f);
  q = fma(q, r, 0.0416662619f);
  q = fma(q, r, 0.1666651517f);
  q = fma(q, r, 0.5f);
  return scale_by_power_of_two(fma(r * r, q, r + 1.0f), k);
}

LAYERCOOP_INLINE Floats sigmoid(Floats x) {
  const Floats one = 1.0f;
  return one / (one + exp(0.0f - x));
}

template <Activation A>
LAYERCOOP_INLINE Floats activate(Floats x) {
  const Floats zero = 0.0f;
  const Floats one = 1.0f;
  const Floats positive = max(x, zero);
  if constexpr (A == Activation::relu) return positive;
  if constexpr (A == Activation::celu) return positive + (exp(min(x, zero)) - one);
  if constexpr (A == Activation::tanh) return one - 2.0f / (exp(x + x) + one);
  // GELU(x) = x·Φ(x) = max(x, 0) − z·Φ(−z) with z = |x|, and Φ(−z) = e^(−z²/2)·q(1 / (1 + 0.3 z)), q fitted by least
  // squares: absolute error below 1e-8 before rounding. Past z = 13 the product is 0.
  const Floats z = min(max(x, zero - x), 13.0f);
  const Floats t = one / fma(z, 0.3f, one);
  Floats q = -0.0479976423f;
  q = fma(q, t, 0.0818603560f);
  q = fma(q, t, 0.2348682284f);
  q = fma(q, t, -0.1023095772f);
  q = fma(q, t, 0.2466991097f);
  q = fma(q, t, 0.0825338587f);
  q = fma(q, t, 0.0043454622f);
  return positive - z * q * exp(-0.5f * z * z);
}

}  // namespace
}  // namespace layercoop::surrogate
