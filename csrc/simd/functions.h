// Functions of sixteen floats that several kernels use; included after one of floats_*.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace layercoop::simd {
namespace {

constexpr std::int64_t kLanes = Floats16::kLanes;
constexpr float kLowest = std::numeric_limits<float>::lowest();

LAYERCOOP_INLINE int lanes_left(std::int64_t from, std::int64_t width) {
  return static_cast<int>(std::min<std::int64_t>(kLanes, width - from));
}

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// The first n <= 16 numbers, and zeros.
template <typename T>
LAYERCOOP_INLINE Floats16 read(const T* p, int n) {
  return n == kLanes ? Floats16::load(p) : Floats16::load_first(p, n);
}

template <typename T>
LAYERCOOP_INLINE void write(T* p, int n, Floats16 x) {
  n == kLanes ? store(p, x) : store_first(p, n, x);
}

// x = n ln(2) + r with a whole n and |r| <= ln(2)/2: returns e^r by the polynomial of Cephes' expf (S. Moshier).
LAYERCOOP_INLINE Floats16 exp_of_rest(Floats16 x, Floats16& n) {
  n = round(x * 1.44269504f);
  Floats16 r = fma(n, -0.693359375f, x);
  r = fma(n, 2.12194440e-4f, r);
  Floats16 p = 1.9875691500e-4f;
  p = fma(p, r, 1.3981999507e-3f);
  p = fma(p, r, 8.3334519073e-3f);
  p = fma(p, r, 4.1665795894e-2f);
  p = fma(p, r, 1.6666665459e-1f);
  p = fma(p, r, 5.0000001201e-1f);
  return fma(p, r * r, r) + 1.0f;
}

// e^x within 2 units in the last place; 0 and infinity where fp32 ends. 2^n in two factors, so that subnormal results
// come out right.
LAYERCOOP_INLINE Floats16 exp(Floats16 x) {
  Floats16 n;
  const Floats16 p = exp_of_rest(min(89.0f, max(-104.0f, x)), n);
  const Floats16 half = round(n * 0.5f);
  return p * power_of_two(half) * power_of_two(n - half);
}

// e^x for x <= 0, as a term of a sum whose largest term is 1. Never below e^-87, which adds nothing to such a sum, so
// that no result is subnormal, which would be slow.
LAYERCOOP_INLINE Floats16 exp_of_term(Floats16 x) {
  Floats16 n;
  const Floats16 p = exp_of_rest(max(-87.0f, x), n);
  return p * power_of_two(n);
}

// 1 / sqrt(mean of squares + eps), given the sum of squares.
LAYERCOOP_INLINE float inverse_rms(float squares, std::int64_t width, float eps) {
  return 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
}

template <typename T>
LAYERCOOP_INLINE float sum_of_squares(const T* x, std::int64_t width) {
  Floats16 sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  std::int64_t j = 0;
  for (; j + 4 * kLanes <= width; j += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Floats16 v = Floats16::load(x + j + k * kLanes);
      sums[k] = fma(v, v, sums[k]);
    }
  }
  for (; j < width; j += kLanes) {
    const Floats16 v = read(x + j, lanes_left(j, width));
    sums[0] = fma(v, v, sums[0]);
  }
  return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace
}  // namespace layercoop::simd
