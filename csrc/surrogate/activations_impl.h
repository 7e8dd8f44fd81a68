// Activations and the sigmoid on vectors; included after one of the vec_*.h, which define V and LAYERCOOP_TARGET.
#pragma once

#include "surrogate/network_kernels.h"

namespace layercoop::surrogate {
namespace {

#define LAYERCOOP_INLINE LAYERCOOP_TARGET __attribute__((always_inline)) inline

// e^x, relative error below 2e-7; x is clamped to ±87, where float32 ends.
// e^x = 2^k·e^r with k = round(x / ln 2), |r| <= ln 2 / 2, and e^r = 1 + r + r²·q(r), q fitted by least squares.
LAYERCOOP_INLINE V exp(V x) {
  x = min(max(x, V::fill(-87.0f)), V::fill(87.0f));
  const V k = round(x * V::fill(1.44269504f));
  V r = fma(k, V::fill(-0.693145752f), x);  // ln 2 in two parts; k times the first is exact
  r = fma(k, V::fill(-1.42860677e-6f), r);
  V q = V::fill(0.0013946561f);
  q = fma(q, r, V::fill(0.0083692232f));
  q = fma(q, r, V::fill(0.0416662619f));
  q = fma(q, r, V::fill(0.1666651517f));
  q = fma(q, r, V::fill(0.5f));
  return scale_by_power_of_two(fma(r * r, q, r + V::fill(1.0f)), k);
}

LAYERCOOP_INLINE V sigmoid(V x) {
  const V one = V::fill(1.0f);
  return one / (one + exp(V::fill(0.0f) - x));
}

template <Activation A>
LAYERCOOP_INLINE V activate(V x) {
  const V zero = V::fill(0.0f);
  const V one = V::fill(1.0f);
  const V positive = max(x, zero);
  if constexpr (A == Activation::relu) return positive;
  if constexpr (A == Activation::celu) return positive + (exp(min(x, zero)) - one);
  if constexpr (A == Activation::tanh) return one - V::fill(2.0f) / (exp(x + x) + one);
  // GELU(x) = x·Φ(x) = max(x, 0) − z·Φ(−z) with z = |x|, and Φ(−z) = e^(−z²/2)·q(1 / (1 + 0.3 z)), q fitted by least
  // squares: absolute error below 1e-8 before rounding. Past z = 13 the product is 0.
  const V z = min(max(x, zero - x), V::fill(13.0f));
  const V t = one / fma(z, V::fill(0.3f), one);
  V q = V::fill(-0.0479976423f);
  q = fma(q, t, V::fill(0.0818603560f));
  q = fma(q, t, V::fill(0.2348682284f));
  q = fma(q, t, V::fill(-0.1023095772f));
  q = fma(q, t, V::fill(0.2466991097f));
  q = fma(q, t, V::fill(0.0825338587f));
  q = fma(q, t, V::fill(0.0043454622f));
  return positive - z * q * exp(V::fill(-0.5f) * z * z);
}

}  // namespace
}  // namespace layercoop::surrogate
