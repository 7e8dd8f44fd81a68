#include "decode/quantise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "decode/grids.h"
#include "decode/half.h"

namespace layercoop::decode {
namespace {

// Plain loops over whole groups, which compilers make vectors of; no fused products and one order of sums, so that every
// machine makes the same integers of the same weights.
using Values = float[kGroup];

// A group's weights; past the last column `use` is 0 and the weight is the first one again.
struct Group {
  Values w;
  Values use;
  int n;
  float low;
  float high;

  Group(const float* weights, std::int64_t count) : n(static_cast<int>(std::min(count, kGroup))) {
    low = high = weights[0];
    for (int i = 0; i < kGroup; ++i) {
      w[i] = weights[i < n ? i : 0];
      use[i] = i < n ? 1.0f : 0.0f;
      if (!std::isfinite(w[i])) throw std::invalid_argument("weights: not all are finite");
      low = std::min(low, w[i]);
      high = std::max(high, w[i]);
    }
  }
};

float sum(Values& x) {
  for (int width = kGroup / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  }
  return x[0];
}

// Whole for |x| < 2^22, which the bounds see to: the sum has no bits left for a fraction.
float nearest(float x, float low, float high) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  return (std::min(std::max(x, low), high) + magic) - magic;
}

// A scale and a min as they are kept, in fp16.
struct Line {
  float scale;
  float low;
};

Line kept(float scale, float low) {
  const Line line{from_half(to_half(scale)), from_half(to_half(low))};
  if (!std::isfinite(line.scale) || !std::isfinite(line.low)) {
    throw std::invalid_argument("weights: too large for scales in fp16");
  }
  return line;
}

// q = (w - low) / scale rounded; returns the sum of (w - scale * q - low)^2.
float assign(const Group& group, const Line& line, float least, float most, Values& q) {
  const float inverse = line.scale == 0.0f ? 0.0f : 1.0f / line.scale;
  Values error;
  for (int i = 0; i < kGroup; ++i) {
    q[i] = nearest((group.w[i] - line.low) * inverse, least, most);
    const float e = group.w[i] - (line.scale * q[i] + line.low);
    error[i] = e * e * group.use[i];
  }
  return sum(error);
}

// The best line so far and its integers.
struct Best {
  Line line{0.0f, 0.0f};
  float error = std::numeric_limits<float>::infinity();
  Values q{};

  void offer(const Group& group, const Line& candidate, float least, float most) {
    Values tried;
    const float found = assign(group, candidate, least, most, tried);
    if (!(found < error)) return;
    error = found;
    line = candidate;
    std::copy(tried, tried + kGroup, q);
  }
};

// How far a range is cut, where single large weights would make the steps of all others coarse.
constexpr float kCuts8[] = {0.0f, 0.01f, 0.02f, 0.03f, 0.045f, 0.06f, 0.08f, 0.1f};
constexpr float kCuts4[] = {0.0f, 0.03f, 0.06f, 0.1f, 0.15f};
constexpr int kRefits = 2;

Best best_int8(const Group& group) {
  const float largest = std::max(-group.low, group.high);
  Best best;
  for (const float cut : kCuts8) best.offer(group, kept(largest * (1.0f - cut) / 127.0f, 0.0f), -127.0f, 127.0f);
  for (int i = 0; i < kRefits; ++i) {
    // The scale of least squares for the integers found.
    Values wq;
    Values qq;
    for (int j = 0; j < kGroup; ++j) {
      wq[j] = group.w[j] * best.q[j] * group.use[j];
      qq[j] = best.q[j] * best.q[j] * group.use[j];
    }
    const float squares = sum(qq);
    if (squares == 0.0f) break;
    best.offer(group, kept(sum(wq) / squares, 0.0f), -127.0f, 127.0f);
  }
  return best;
}

Best best_int4(const Group& group) {
  const float range = group.high - group.low;
  Best best;
  for (const float below : kCuts4) {
    for (const float above : kCuts4) {
      const float low = group.low + below * range;
      best.offer(group, kept((group.high - above * range - low) / 15.0f, low), 0.0f, 15.0f);
    }
  }
  for (int i = 0; i < kRefits; ++i) {
    // Scale and min of least squares for the integers found.
    const float n = static_cast<float>(group.n);
    Values q;
    Values w;
    for (int j = 0; j < kGroup; ++j) {
      q[j] = best.q[j] * group.use[j];
      w[j] = group.w[j] * group.use[j];
    }
    const float mean_q = sum(q) / n;
    const float mean_w = sum(w) / n;
    Values wq;
    Values qq;
    for (int j = 0; j < kGroup; ++j) {
      const float apart = (best.q[j] - mean_q) * group.use[j];
      wq[j] = apart * (group.w[j] - mean_w);
      qq[j] = apart * apart;
    }
    const float squares = sum(qq);
    if (squares == 0.0f) break;
    const float scale = sum(wq) / squares;
    if (scale < 0.0f) break;
    best.offer(group, kept(scale, mean_w - scale * mean_q), 0.0f, 15.0f);
  }
  return best;
}

}  // namespace

void quantise_int8(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::int8_t* q,
                   std::uint16_t* scales) {
  const std::int64_t groups = (columns + kGroup - 1) / kGroup;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t at = row * columns + g * kGroup;
      const Group group(weights + at, columns - g * kGroup);
      std::uint16_t& scale = scales[row * groups + g];
      if (find_grid_int8(group.w, group.n, origin, q + at, scale)) continue;
      const Best best = best_int8(group);
      scale = to_half(best.line.scale);
      for (int i = 0; i < group.n; ++i) q[at + i] = static_cast<std::int8_t>(best.q[i]);
    }
  }
}

void quantise_int4(const float* weights, std::int64_t rows, std::int64_t columns, Origin origin, std::uint8_t* q,
                   std::uint16_t* scales, std::uint16_t* mins) {
  const std::int64_t groups = (columns + kGroup - 1) / kGroup;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t at = row * columns + g * kGroup;
      const Group group(weights + at, columns - g * kGroup);
      std::uint16_t& scale = scales[row * groups + g];
      std::uint16_t& low = mins[row * groups + g];
      if (find_grid_int4(group.w, group.n, origin, q + at, scale, low)) continue;
      const Best best = best_int4(group);
      scale = to_half(best.line.scale);
      low = to_half(best.line.low);
      for (int i = 0; i < group.n; ++i) q[at + i] = static_cast<std::uint8_t>(best.q[i]);
    }
  }
}

}  // namespace layercoop::decode
