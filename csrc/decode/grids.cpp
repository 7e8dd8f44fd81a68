#include "decode/grids.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "half.h"

namespace layercoop::decode {
namespace {

constexpr int kMostHalves = 64;

// The nearest integer, for |x| < 2^51: the sum has no bits left for a fraction. (A call of std::nearbyint would take
// longer than all the rest.)
double nearest(double x) {
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  return (x + magic) - magic;
}

// The largest distance from w at which a number may round to w.
double slack(float w, Origin origin) {
  const float size = std::fabs(w);
  switch (origin) {
    case Origin::bf16:
      return 0.5 * (static_cast<double>(from_bf16(static_cast<std::uint16_t>(to_bf16(size) + 1))) - size);
    case Origin::fp16:
      return 0.5 * (static_cast<double>(from_half(static_cast<std::uint16_t>(to_half(size) + 1))) - size);
    case Origin::fp32: break;
  }
  return 0.5 * (static_cast<double>(of_bits(bits_of(size) + 1)) - size);
}

// fp16 numbers as integers in the same order, and back.
int ordered(double x) {
  const std::uint16_t bits = to_half(static_cast<float>(x));
  return (bits & 0x8000u) != 0 ? -(bits & 0x7fff) : bits;
}
std::uint16_t half_at(int order) { return static_cast<std::uint16_t>(order < 0 ? 0x8000 | -order : order); }

// The fp16 numbers in [low, high] as a range of `ordered`, with one more at each end.
struct Halves {
  int first;
  int last;

  Halves(double low, double high) : first(ordered(low) - 1), last(ordered(high) + 1) {
    constexpr int most = 0x7bff;
    first = std::max(first, -most);
    last = std::min(last, most);
  }
  int count() const { return last - first + 1; }
  // From the middle outwards, i in 0 .. count - 1.
  int at(int i) const {
    const int middle = first + (last - first) / 2;
    return i % 2 == 0 ? middle - i / 2 : middle + (i + 1) / 2;
  }
};

// Fills q where scale * q + low gives every weight back.
template <typename Q>
bool gives_back(const QuantiseKernels& kernels, const Group& group, Origin origin, float scale, float low, int least,
                int most, Q* q) {
  std::int32_t found[kGroup];
  if (!kernels.gives_back(group, origin, scale, low, least, most, found)) return false;
  for (int i = 0; i < kGroup; ++i) q[i] = static_cast<Q>(found[i]);
  return true;
}

// Whether all weights may be multiples of one step, the largest being `top` times the step. The step is estimated as
// largest / top, with an error of at most off / top.
bool near_grid(const float* w, int n, Origin origin, double largest, double off, int top) {
  if (off >= largest) return true;
  for (int i = 0; i < n; ++i) {
    const double place = std::fabs(w[i]) * top / largest;
    const double room = (place * off + slack(w[i], origin) * top) / (largest - off);
    if (std::fabs(place - nearest(place)) > room + 1e-9) return false;
  }
  return true;
}

struct Points {
  const QuantiseKernels& kernels;
  const Group& group;
  Origin origin;
  float at[kPoints];
  double slack_at[kPoints];
  int count;
};

// With the smallest weight at `first` and the largest at `first + span` of the grid.
bool try_int4(const Points& points, int first, int span, std::uint8_t* q, std::uint16_t& scale, std::uint16_t& low) {
  const double bottom = points.at[0];
  const double top = points.at[points.count - 1];
  const double step = (top - bottom) / span;
  const double min = bottom - first * step;
  const double most_off = points.slack_at[0] + first * (points.slack_at[0] + points.slack_at[points.count - 1]) / span;
  const Halves mins(min - most_off, min + most_off);
  if (mins.count() > kMostHalves) return false;
  for (int i = 0; i < mins.count(); ++i) {
    const std::uint16_t tried = half_at(mins.at(i));
    const double m = from_half(tried);
    // Each weight's place on the grid limits the step: it lies in least .. most.
    const double guess = (top - m) / (first + span);
    if (!(guess > 0.0)) continue;
    double least = 0.0;
    double most = std::numeric_limits<double>::infinity();
    for (int j = points.count - 1; j >= 0 && least <= most; --j) {
      const double apart = points.at[j] - m;
      const double place = nearest(apart / guess);
      if (place < 0.0 || place > 15.0) {
        most = -1.0;
      } else if (place == 0.0) {
        if (std::fabs(apart) > points.slack_at[j]) most = -1.0;
      } else {
        least = std::max(least, (apart - points.slack_at[j]) / place);
        most = std::min(most, (apart + points.slack_at[j]) / place);
      }
    }
    if (least > most) continue;
    const Halves steps(least, most);
    if (steps.count() > kMostHalves) continue;
    for (int j = 0; j < steps.count(); ++j) {
      const int order = steps.at(j);
      if (order < 0) continue;
      const std::uint16_t half = half_at(order);
      const float exact[] = {from_half(half), from_half(tried)};
      if (!gives_back(points.kernels, points.group, points.origin, exact[0], exact[1], 0, 15, q)) continue;
      scale = half;
      low = tried;
      return true;
    }
  }
  return false;
}

// With the largest weight at `top` of the grid.
bool try_int8(const QuantiseKernels& kernels, const Group& group, Origin origin, double largest, double off, int top,
              std::int8_t* q, std::uint16_t& scale) {
  const Halves steps((largest - off) / top, (largest + off) / top);
  if (steps.count() > kMostHalves) return false;
  const std::uint64_t fit = kernels.scales(group, steps.first, steps.count(), origin);
  if (fit == 0) return false;
  for (int i = 0; i < steps.count(); ++i) {
    const int order = steps.at(i);
    if (order <= 0 || (fit >> (order - steps.first) & 1u) == 0) continue;
    const std::uint16_t half = half_at(order);
    if (!gives_back(kernels, group, origin, from_half(half), 0.0f, -127, 127, q)) continue;
    // With the smallest fp16 numbers, a step may fit that puts the largest weight at another place.
    int place = 0;
    for (int j = 0; j < group.n; ++j) place = std::max<int>(place, std::abs(q[j]));
    if (place != top && !near_grid(group.w, group.n, origin, largest, off, top)) return false;
    scale = half;
    return true;
  }
  return false;
}

}  // namespace

bool find_grid_int4(const QuantiseKernels& kernels, const Group& group, Origin origin, std::uint8_t* q,
                    std::uint16_t& scale, std::uint16_t& low) {
  Points points{kernels, group, origin, {}, {}, 0};
  points.count = kernels.distinct(group, points.at);
  if (points.count < 0) return false;
  for (int j = 0; j < points.count; ++j) points.slack_at[j] = slack(points.at[j], origin);
  if (points.count == 1) {
    scale = 0;
    low = to_half(group.w[0]);
    return gives_back(kernels, group, origin, 0.0f, from_half(low), 0, 0, q);
  }
  // Quantisers usually use the whole range of integers; a clipped or shifted grid does not.
  for (int span = kPoints - 1; span >= points.count - 1; --span) {
    for (int first = 0; first + span < kPoints; ++first) {
      if (try_int4(points, first, span, q, scale, low)) return true;
    }
  }
  return false;
}

bool find_grid_int8(const QuantiseKernels& kernels, const Group& group, Origin origin, std::int8_t* q,
                    std::uint16_t& scale) {
  const float* w = group.w;
  const int n = group.n;
  const double largest = std::max(-group.low, group.high);
  if (largest == 0.0) {
    scale = 0;
    std::fill(q, q + n, std::int8_t{0});
    return true;
  }
  const double off = slack(static_cast<float>(largest), origin);
  // Quantisers give the largest weight of a whole group 127.
  if (try_int8(kernels, group, origin, largest, off, 127, q, scale)) return true;
  // If there are few distinct values, the grid may have fewer bits.
  float points[kPoints];
  if (n < kGroup) {
    if (kernels.distinct(group, points) < 0) return false;
    for (int top = 126; top >= 1; --top) {
      if (!near_grid(w, n, origin, largest, off, top)) continue;  // true of most
      if (try_int8(kernels, group, origin, largest, off, top, q, scale)) return true;
    }
    return false;
  }
  const std::uint32_t tops = kernels.tops(group, static_cast<float>(largest), origin);
  if (tops <= 1 || kernels.distinct(group, points) < 0) return false;
  for (int top = kPoints - 1; top >= 1; --top) {
    if ((tops >> top & 1u) == 0) continue;
    if (try_int8(kernels, group, origin, largest, off, top, q, scale)) return true;
  }
  return false;
}

}  // namespace layercoop::decode
