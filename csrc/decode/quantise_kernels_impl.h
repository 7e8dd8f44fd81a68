// The kernels of quantise_kernels.h, written once over the vectors `Part` of kPart numbers that the including file has
// chosen, in its own copy. No fused products and one order of sums, so that every machine makes the same integers.
//
// No lambdas here: a lambda does not inherit its function's target attribute.
#pragma once

#include "decode/quantise_lanes.h"

namespace layercoop::decode {
namespace {

constexpr int kParts = kGroup / kPart;
constexpr std::uint32_t kAllParts = (1u << kPart) - 1;
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: in a sum with it no bits are left for a fraction

LAYERCOOP_INLINE Part all(float x) { return x - Part{}; }
LAYERCOOP_INLINE Part part(const Group& group, int i) {
  Part x;
  std::memcpy(&x, group.w + i * kPart, sizeof x);
  return x;
}
LAYERCOOP_INLINE Part size(Part x) { return (Part)((Bits)x & 0x7fffffffu); }
LAYERCOOP_INLINE Part whole(Part x) { return (x + kMagic) - kMagic; }

LAYERCOOP_TARGET bool measure(int n, Group& group) {
  Part low = part(group, 0);
  Part high = low;
  Bits finite = ~Bits{};
  for (int i = 0; i < kParts; ++i) {
    const Part x = part(group, i);
    finite &= (Bits)(x - x == Part{});
    low = smaller(x, low);
    high = larger(x, high);
  }
  group.n = n;
  group.low = low[0];
  group.high = high[0];
  for (int j = 1; j < kPart; ++j) {
    group.low = std::min(group.low, low[j]);
    group.high = std::max(group.high, high[j]);
  }
  group.low += 0.0f;
  group.high += 0.0f;
  return signs(finite) == kAllParts;
}

LAYERCOOP_INLINE void require_kept(bool finite) {
  if (!finite) throw std::invalid_argument("weights: too large for scales in fp16");
}

// Numbers to fp16 and back: eight, or one.
LAYERCOOP_INLINE void keep(float* x) {
  halves(x);
  bool finite = true;
  for (int i = 0; i < 8; ++i) finite &= x[i] - x[i] == 0.0f;
  require_kept(finite);
}
LAYERCOOP_INLINE float kept(float x) {
  const float half = half_of(x);
  require_kept(std::isfinite(half));
  return half;
}

LAYERCOOP_INLINE float inverse_of(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

// The line of least squared error among those offered; integers from `least` to `most`. `filled`: no column is missing;
// `centred`: the min is always 0.
template <bool filled, bool centred>
struct Best {
  const Group& group;
  const float least;
  const float most;
  Values use;
  Line line{0.0f, 0.0f};
  float error = std::numeric_limits<float>::infinity();

  LAYERCOOP_INLINE Best(const Group& group, float least, float most) : group(group), least(least), most(most) {
    for (int i = 0; i < kGroup; ++i) use[i / kPart][i % kPart] = i < group.n ? 1.0f : 0.0f;
  }

  LAYERCOOP_INLINE Part used(Part x, int i) const { return filled ? x : x * use[i]; }

  // (w - low) / scale, rounded.
  LAYERCOOP_INLINE Part nearest(int i, const Line& candidate, float inverse) const {
    const Part apart = centred ? part(group, i) : part(group, i) - candidate.low;
    return whole(smaller(larger(apart * inverse, all(least)), all(most)));
  }

  // Of numbers as they are kept. Without a branch: nobody could predict it.
  LAYERCOOP_INLINE void offer(const Line& candidate) {
    const float inverse = inverse_of(candidate.scale);
    Values squares;
    for (int i = 0; i < kParts; ++i) {
      const Part steps = candidate.scale * nearest(i, candidate, inverse);
      const Part off = part(group, i) - (centred ? steps : steps + candidate.low);
      squares[i] = used(off * off, i);
    }
    const float found = sum(squares);
    const bool better = found < error;
    error = better ? found : error;
    line.scale = better ? candidate.scale : line.scale;
    line.low = better ? candidate.low : line.low;
  }

  // Whether it is a better one.
  LAYERCOOP_INLINE bool offer_exact(float scale, float low) {
    const float before = error;
    offer({kept(scale), centred ? 0.0f : kept(low)});
    return error < before;
  }

  LAYERCOOP_INLINE void integers(Values& q) const {
    const float inverse = inverse_of(line.scale);
    for (int i = 0; i < kParts; ++i) q[i] = nearest(i, line, inverse);
  }

  template <typename Q>
  LAYERCOOP_INLINE Line result(Q* q) const {
    Values found;
    integers(found);
    std::int32_t numbers[kGroup];
    for (int i = 0; i < kParts; ++i) {
      const auto converted = __builtin_convertvector(found[i], std::int32_t __attribute__((vector_size(4 * kPart))));
      std::memcpy(numbers + i * kPart, &converted, sizeof converted);
    }
    for (int i = 0; i < kGroup; ++i) q[i] = static_cast<Q>(numbers[i]);
    return line;
  }
};

// How far a range is cut, where single large weights would make the steps of all others coarse.
constexpr float kCuts8[8] = {0.0f, 0.01f, 0.02f, 0.03f, 0.045f, 0.06f, 0.08f, 0.1f};
constexpr int kLines = 5;
constexpr float kCuts4[kLines] = {0.0f, 0.03f, 0.06f, 0.1f, 0.15f};
constexpr int kRefits = 2;

template <bool filled>
LAYERCOOP_TARGET Line search_int8(const Group& group, std::int8_t* to) {
  const float largest = std::max(-group.low, group.high);
  Best<filled, true> best(group, -127.0f, 127.0f);
  float scales[8];
  for (int i = 0; i < 8; ++i) scales[i] = largest * (1.0f - kCuts8[i]) / 127.0f;
  keep(scales);
  for (const float scale : scales) best.offer({scale, 0.0f});
  for (int refit = 0; refit < kRefits; ++refit) {
    // The scale of least squares for the integers found.
    Values q;
    best.integers(q);
    Values wq;
    Values qq;
    for (int i = 0; i < kParts; ++i) {
      wq[i] = best.used(part(group, i) * q[i], i);
      qq[i] = best.used(q[i] * q[i], i);
    }
    const float squares = sum(qq);
    if (squares == 0.0f) break;
    if (!best.offer_exact(sum(wq) / squares, 0.0f)) break;
  }
  return best.result(to);
}

template <bool filled>
LAYERCOOP_TARGET Line search_int4(const Group& group, std::uint8_t* to) {
  const float range = group.high - group.low;
  Best<filled, false> best(group, 0.0f, 15.0f);
  float lows[8] = {};
  float cuts[8] = {};
  for (int i = 0; i < kLines; ++i) {
    lows[i] = group.low + kCuts4[i] * range;
    cuts[i] = group.high - kCuts4[i] * range;
  }
  float scales[kLines][8];
  for (int i = 0; i < kLines; ++i) {
    for (int j = 0; j < 8; ++j) scales[i][j] = j < kLines ? (cuts[j] - lows[i]) / 15.0f : 0.0f;
    keep(scales[i]);
  }
  keep(lows);
  for (int i = 0; i < kLines; ++i) {
    for (int j = 0; j < kLines; ++j) best.offer({scales[i][j], lows[i]});
  }
  for (int refit = 0; refit < kRefits; ++refit) {
    // Scale and min of least squares for the integers found.
    Values q;
    best.integers(q);
    Values used_q;
    Values used_w;
    for (int i = 0; i < kParts; ++i) {
      used_q[i] = best.used(q[i], i);
      used_w[i] = best.used(part(group, i), i);
    }
    const float mean_q = sum(used_q) / static_cast<float>(group.n);
    const float mean_w = sum(used_w) / static_cast<float>(group.n);
    Values wq;
    Values qq;
    for (int i = 0; i < kParts; ++i) {
      const Part apart = best.used(q[i] - mean_q, i);
      wq[i] = apart * (part(group, i) - mean_w);
      qq[i] = apart * apart;
    }
    const float squares = sum(qq);
    const float scale = squares == 0.0f ? -1.0f : sum(wq) / squares;
    if (scale < 0.0f) break;
    if (!best.offer_exact(scale, mean_w - scale * mean_q)) break;
  }
  return best.result(to);
}

LAYERCOOP_TARGET Line best_int8(const Group& group, std::int8_t* q) {
  return group.n == kGroup ? search_int8<true>(group, q) : search_int8<false>(group, q);
}

LAYERCOOP_TARGET Line best_int4(const Group& group, std::uint8_t* q) {
  return group.n == kGroup ? search_int4<true>(group, q) : search_int4<false>(group, q);
}

}  // namespace
}  // namespace layercoop::decode
