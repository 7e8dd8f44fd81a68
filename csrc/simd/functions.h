// Functions on sixteen lanes that several kernels use, over whichever lanes the including file has chosen.
//
// No lambdas here: a lambda does not inherit its function's target attribute.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace layercoop::simd {
namespace {

constexpr std::int64_t kLanes = 16;
constexpr float kLowest = std::numeric_limits<float>::lowest();

LAYERCOOP_INLINE int lanes_left(std::int64_t from, std::int64_t width) {
  return static_cast<int>(std::min<std::int64_t>(kLanes, width - from));
}

// Up to sixteen numbers; lanes past them are 0.
template <typename T>
LAYERCOOP_INLINE Lanes read(const T* p, int n) {
  return n == kLanes ? load(p) : load_first(p, n);
}

template <typename T>
LAYERCOOP_INLINE void write(T* p, int n, Lanes x) {
  n == kLanes ? store(p, x) : store_first(p, n, x);
}

// x = n ln(2) + r with a whole n and |r| <= ln(2)/2: returns e^r by the polynomial of Cephes' expf (S. Moshier).
LAYERCOOP_INLINE Lanes exp_of_rest(Lanes x, Lanes& n) {
  n = nearest(mul(x, splat(1.44269504f)));
  Lanes r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Lanes p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  return add(fma(p, mul(r, r), r), splat(1.0f));
}

// e^x within 2 units in the last place; 0 and infinity where fp32 ends. 2^n in two factors, so that subnormal results
// come out right.
LAYERCOOP_INLINE Lanes exp(Lanes x) {
  Lanes n;
  const Lanes p = exp_of_rest(at_most(at_least(x, -104.0f), 89.0f), n);
  const Lanes half = nearest(mul(n, splat(0.5f)));
  return mul(mul(p, power_of_two(half)), power_of_two(sub(n, half)));
}

// The same for x <= 0, a term of a sum in which another is 1: never below e^-87, which is nothing there, and so never
// subnormal, which would be slow.
LAYERCOOP_INLINE Lanes exp_of_term(Lanes x) {
  Lanes n;
  const Lanes p = exp_of_rest(at_least(x, -87.0f), n);
  return mul(p, power_of_two(n));
}

// 1 / sqrt(mean of squares + eps), given the sum of squares.
LAYERCOOP_INLINE float inverse_rms(float squares, std::int64_t width, float eps) {
  return 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
}

template <typename T>
LAYERCOOP_INLINE float sum_of_squares(const T* x, std::int64_t width) {
  Lanes sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  std::int64_t j = 0;
  for (; j + 4 * kLanes <= width; j += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Lanes v = load(x + j + k * kLanes);
      sums[k] = fma(v, v, sums[k]);
    }
  }
  for (; j < width; j += kLanes) {
    const Lanes v = read(x + j, lanes_left(j, width));
    sums[0] = fma(v, v, sums[0]);
  }
  return total(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

}  // namespace
}  // namespace layercoop::simd
