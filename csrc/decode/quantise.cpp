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

// Four numbers that compilers know to work on at once, everywhere. No fused products and one order of sums, so that every
// machine makes the same integers of the same weights.
using Four = float __attribute__((vector_size(16)));
constexpr int kFours = kGroup / 4;
using Values = Four[kFours];

Four all(float x) { return Four{x, x, x, x}; }

float total(const Four& x) { return (x[0] + x[2]) + (x[1] + x[3]); }

float sum(const Values& x) {
  return total(((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])));
}

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
      const float x = weights[i < n ? i : 0];
      if (!std::isfinite(x)) throw std::invalid_argument("weights: not all are finite");
      w[i / 4][i % 4] = x;
      use[i / 4][i % 4] = i < n ? 1.0f : 0.0f;
      low = std::min(low, x);
      high = std::max(high, x);
    }
  }
};

// A scale and a min as they are kept, in fp16, and the integers they go with.
struct Line {
  float scale;
  float low;

  Line(float exact_scale, float exact_low)
      : scale(from_half(to_half(exact_scale))), low(from_half(to_half(exact_low))) {
    if (!std::isfinite(scale) || !std::isfinite(low)) {
      throw std::invalid_argument("weights: too large for scales in fp16");
    }
  }
};

// Integers from `least` to `most`.
struct Range {
  float least;
  float most;

  // (w - low) / scale, rounded: within the range the sum has no bits left for a fraction.
  Four nearest(const Four& w, const Line& line, float inverse) const {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23
    Four x = (w - line.low) * inverse;
    x = x < all(least) ? all(least) : x;
    x = x > all(most) ? all(most) : x;
    return (x + magic) - magic;
  }
};

float inverse_of(const Line& line) { return line.scale == 0.0f ? 0.0f : 1.0f / line.scale; }

// The line of least squared error among those offered.
struct Best {
  const Group& group;
  const Range range;
  Line line{0.0f, 0.0f};
  float error = std::numeric_limits<float>::infinity();

  void offer(const Line& candidate) {
    const float inverse = inverse_of(candidate);
    Values squares;
    for (int i = 0; i < kFours; ++i) {
      const Four q = range.nearest(group.w[i], candidate, inverse);
      const Four off = group.w[i] - (candidate.scale * q + candidate.low);
      squares[i] = off * off * group.use[i];
    }
    const float found = sum(squares);
    if (!(found < error)) return;
    error = found;
    line = candidate;
  }

  void integers(Values& q) const {
    const float inverse = inverse_of(line);
    for (int i = 0; i < kFours; ++i) q[i] = range.nearest(group.w[i], line, inverse);
  }
};

// How far a range is cut, where single large weights would make the steps of all others coarse.
constexpr float kCuts8[] = {0.0f, 0.01f, 0.02f, 0.03f, 0.045f, 0.06f, 0.08f, 0.1f};
constexpr float kCuts4[] = {0.0f, 0.03f, 0.06f, 0.1f, 0.15f};
constexpr int kRefits = 2;

Best best_int8(const Group& group) {
  const float largest = std::max(-group.low, group.high);
  Best best{group, {-127.0f, 127.0f}};
  for (const float cut : kCuts8) best.offer({largest * (1.0f - cut) / 127.0f, 0.0f});
  for (int refit = 0; refit < kRefits; ++refit) {
    // The scale of least squares for the integers found.
    Values q;
    best.integers(q);
    Values wq;
    Values qq;
    for (int i = 0; i < kFours; ++i) {
      wq[i] = group.w[i] * q[i] * group.use[i];
      qq[i] = q[i] * q[i] * group.use[i];
    }
    const float squares = sum(qq);
    if (squares == 0.0f) break;
    best.offer({sum(wq) / squares, 0.0f});
  }
  return best;
}

Best best_int4(const Group& group) {
  const float range = group.high - group.low;
  Best best{group, {0.0f, 15.0f}};
  for (const float below : kCuts4) {
    for (const float above : kCuts4) {
      const float low = group.low + below * range;
      best.offer({(group.high - above * range - low) / 15.0f, low});
    }
  }
  for (int refit = 0; refit < kRefits; ++refit) {
    // Scale and min of least squares for the integers found.
    Values q;
    best.integers(q);
    Values used_q;
    Values used_w;
    for (int i = 0; i < kFours; ++i) {
      used_q[i] = q[i] * group.use[i];
      used_w[i] = group.w[i] * group.use[i];
    }
    const float mean_q = sum(used_q) / static_cast<float>(group.n);
    const float mean_w = sum(used_w) / static_cast<float>(group.n);
    Values wq;
    Values qq;
    for (int i = 0; i < kFours; ++i) {
      const Four apart = (q[i] - mean_q) * group.use[i];
      wq[i] = apart * (group.w[i] - mean_w);
      qq[i] = apart * apart;
    }
    const float squares = sum(qq);
    const float scale = squares == 0.0f ? -1.0f : sum(wq) / squares;
    if (scale < 0.0f) break;
    best.offer({scale, mean_w - scale * mean_q});
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
      if (find_grid_int8(weights + at, group.n, origin, q + at, scale)) continue;
      const Best best = best_int8(group);
      scale = to_half(best.line.scale);
      Values found;
      best.integers(found);
      for (int i = 0; i < group.n; ++i) q[at + i] = static_cast<std::int8_t>(found[i / 4][i % 4]);
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
      if (find_grid_int4(weights + at, group.n, origin, q + at, scale, low)) continue;
      const Best best = best_int4(group);
      scale = to_half(best.line.scale);
      low = to_half(best.line.low);
      Values found;
      best.integers(found);
      for (int i = 0; i < group.n; ++i) q[at + i] = static_cast<std::uint8_t>(found[i / 4][i % 4]);
    }
  }
}

}  // namespace layercoop::decode
