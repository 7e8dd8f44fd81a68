// The kernels of quantise_kernels.h over the vectors of floats that the including file has chosen. Products are not
// fused and sums have one order, so that every machine finds the same integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "decode/quantise_kernels.h"
#include "half.h"

namespace layercoop::decode {
namespace {

using namespace simd;

constexpr int kLanes = Floats::kLanes;
constexpr int kParts = kGroup / kLanes;
constexpr std::uint32_t kAllLanes = (1u << kLanes) - 1;
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: a sum with it has no bits left for a fraction

using Lanes = decltype(Floats::x);
using Bits = std::uint32_t __attribute__((vector_size(sizeof(Floats))));

// A bit for each lane of a comparison.
LAYERCOOP_INLINE std::uint32_t signs(Bits mask) { return signs(Floats((Lanes)mask)); }

LAYERCOOP_INLINE Floats part(const Group& group, int i) { return Floats::load(group.w + i * kLanes); }
LAYERCOOP_INLINE Floats size(Floats a) { return (Lanes)((Bits)a.x & 0x7fffffffu); }
LAYERCOOP_INLINE Floats whole(Floats a) { return (a + kMagic) - kMagic; }

// A number for each column of a group, and their sum.
using Values = Floats[kParts];
LAYERCOOP_INLINE float sum(const Values& values) {
  Values halves;
  std::copy(values, values + kParts, halves);
  for (int n = kParts / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) halves[i] = halves[i] + halves[i + n];
  }
  return total(halves[0]);
}

LAYERCOOP_TARGET bool measure(int n, Group& group) {
  Floats low = part(group, 0);
  Floats high = low;
  Bits finite = ~Bits{};
  for (int i = 0; i < kParts; ++i) {
    const Floats x = part(group, i);
    finite &= (Bits)((x - x).x == Floats(0.0f).x);
    low = min(x, low);
    high = max(x, high);
  }
  group.n = n;
  group.low = low.x[0];
  group.high = high.x[0];
  for (int j = 1; j < kLanes; ++j) {
    group.low = std::min(group.low, low.x[j]);
    group.high = std::max(group.high, high.x[j]);
  }
  group.low += 0.0f;
  group.high += 0.0f;
  return signs(finite) == kAllLanes;
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

// Keeps the line of least squared error among those offered, for integers from `least` to `most`. `filled`: the group
// has all columns. `centred`: the min is always 0.
template <bool filled, bool centred>
struct Best {
  const Group& group;
  const float least;
  const float most;
  Values use;
  Line line{0.0f, 0.0f};
  float error = std::numeric_limits<float>::infinity();

  LAYERCOOP_INLINE Best(const Group& group, float least, float most) : group(group), least(least), most(most) {
    for (int i = 0; i < kGroup; ++i) use[i / kLanes].x[i % kLanes] = i < group.n ? 1.0f : 0.0f;
  }

  LAYERCOOP_INLINE Floats used(Floats x, int i) const { return filled ? x : x * use[i]; }

  // (w - low) / scale, rounded.
  LAYERCOOP_INLINE Floats nearest(int i, const Line& candidate, float inverse) const {
    const Floats apart = centred ? part(group, i) : part(group, i) - candidate.low;
    return whole(min(max(apart * inverse, least), most));
  }

  // Offers a line whose numbers are rounded to fp16. Without a branch, which could not be predicted.
  LAYERCOOP_INLINE void offer(const Line& candidate) {
    const float inverse = inverse_of(candidate.scale);
    Values squares;
    for (int i = 0; i < kParts; ++i) {
      const Floats steps = candidate.scale * nearest(i, candidate, inverse);
      const Floats off = part(group, i) - (centred ? steps : steps + candidate.low);
      squares[i] = used(off * off, i);
    }
    const float found = sum(squares);
    const bool better = found < error;
    error = better ? found : error;
    line.scale = better ? candidate.scale : line.scale;
    line.low = better ? candidate.low : line.low;
  }

  // Offers a line in fp32; returns whether it is better.
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
      const auto converted =
          __builtin_convertvector(found[i].x, std::int32_t __attribute__((vector_size(sizeof(Floats)))));
      std::memcpy(numbers + i * kLanes, &converted, sizeof converted);
    }
    for (int i = 0; i < kGroup; ++i) q[i] = static_cast<Q>(numbers[i]);
    return line;
  }
};

// How much of a range is cut off, since single large weights would make the step coarse for all others.
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
    // The least-squares scale for the integers found.
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
    // The least-squares scale and min for the integers found.
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
      const Floats apart = best.used(q[i] - mean_q, i);
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

LAYERCOOP_TARGET int distinct(const Group& group, float* found) {
  // The weights that equal none before them, without a branch, which could not be predicted.
  float first[kGroup];
  int count = 0;
  for (int i = 0; i < kGroup; ++i) {
    const Floats x = group.w[i];
    std::uint32_t same = 0;
    for (int j = 0; j < kParts; ++j) same |= signs((Bits)(part(group, j).x == x.x)) << (j * kLanes);
    first[count] = group.w[i];
    count += (same & ((1u << i) - 1)) == 0;
  }
  if (count > kPoints) return -1;
  // Each goes to its rank.
  float among[kPoints];
  for (int i = 0; i < kPoints; ++i) among[i] = i < count ? first[i] : std::numeric_limits<float>::infinity();
  Floats parts[kPoints / kLanes];
  std::memcpy(parts, among, sizeof parts);
  for (int i = 0; i < count; ++i) {
    const Floats x = first[i];
    std::uint32_t less = 0;
    for (int j = 0; j < kPoints / kLanes; ++j) less |= signs((Bits)(parts[j].x < x.x)) << (j * kLanes);
    found[__builtin_popcount(less)] = first[i];
  }
  return count;
}

LAYERCOOP_INLINE Floats to_bf16_and_back(Floats x) {
  const Bits bits = (Bits)x.x;
  return (Lanes)((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

// Half the distance between neighbours in fp16 is at most this part of the number, or 2^-25.
constexpr float kHalfSlack = 0x1.01p-11f;

template <Origin origin>
LAYERCOOP_TARGET std::uint64_t scales_that_fit(const Group& group, int first, int count) {
  std::uint64_t found = 0;
  for (int at = 0; at < count; at += kLanes) {
    Bits half;
    for (int j = 0; j < kLanes; ++j) half[j] = static_cast<std::uint32_t>(std::max(1, first + at + j));
    const Floats scale = Floats((Lanes)(half << 13)) * 0x1p112f;
    const Floats inverse = 1.0f / scale;
    std::uint32_t alive = kAllLanes;
    for (int i = 0; i < group.n && alive != 0; ++i) {
      const Floats w = group.w[i];
      const Floats product = scale * whole(w * inverse);
      Bits fits;
      if (origin == Origin::bf16) {
        fits = (Bits)(to_bf16_and_back(product).x == w.x);
      } else if (origin == Origin::fp16) {
        fits = (Bits)(size(product - w).x <= (size(w) * kHalfSlack + 0x1.01p-25f).x);
      } else {
        fits = (Bits)(product.x == w.x);
      }
      alive &= signs(fits);
    }
    found |= static_cast<std::uint64_t>(alive) << at;
  }
  return found;
}

LAYERCOOP_TARGET std::uint64_t scales(const Group& group, int first, int count, Origin origin) {
  switch (origin) {
    case Origin::bf16: return scales_that_fit<Origin::bf16>(group, first, count);
    case Origin::fp16: return scales_that_fit<Origin::fp16>(group, first, count);
    case Origin::fp32: break;
  }
  return scales_that_fit<Origin::fp32>(group, first, count);
}

template <Origin origin>
LAYERCOOP_TARGET bool every_weight(const Group& group, float scale, float low, float least, float most,
                                   std::int32_t* q) {
  // Four at a time, in doubles. A sum with `magic` has no bits left for a fraction, for |x| < 2^51.
  using Four = float __attribute__((vector_size(16)));
  using FourBits = std::uint32_t __attribute__((vector_size(16)));
  using Doubles = double __attribute__((vector_size(32)));
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  const double inverse = scale == 0.0f ? 0.0 : 1.0 / static_cast<double>(scale);
  for (int first = 0; first < kGroup; first += 8) {
    Four weights[2];
    Four sums[2];
    FourBits wrong = {};
    std::memcpy(weights, group.w + first, sizeof weights);
    for (int i = 0; i < 2; ++i) {
      const Doubles place = ((__builtin_convertvector(weights[i], Doubles) - low) * inverse + magic) - magic;
      Four number = __builtin_convertvector(place, Four);
      const FourBits beyond = (FourBits)(number < least) | (FourBits)(number > most);
      wrong |= beyond;
      number = (Four)((FourBits)number & ~beyond);
      sums[i] = scale * number + low;
      const auto integers = __builtin_convertvector(number, std::int32_t __attribute__((vector_size(16))));
      std::memcpy(q + first + 4 * i, &integers, sizeof integers);
    }
    if (origin == Origin::fp16) halves(reinterpret_cast<float*>(sums));
    for (int i = 0; i < 2; ++i) {
      if (origin == Origin::bf16) {
        const FourBits bits = (FourBits)sums[i];
        sums[i] = (Four)((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
      }
      wrong |= (FourBits)(sums[i] != weights[i]);
    }
    if ((wrong[0] | wrong[1] | wrong[2] | wrong[3]) != 0) return false;
  }
  return true;
}

LAYERCOOP_TARGET bool gives_back(const Group& group, Origin origin, float scale, float low, int least, int most,
                                 std::int32_t* q) {
  const float from = static_cast<float>(least);
  const float to = static_cast<float>(most);
  switch (origin) {
    case Origin::bf16: return every_weight<Origin::bf16>(group, scale, low, from, to, q);
    case Origin::fp16: return every_weight<Origin::fp16>(group, scale, low, from, to, q);
    case Origin::fp32: break;
  }
  return every_weight<Origin::fp32>(group, scale, low, from, to, q);
}

LAYERCOOP_TARGET std::uint32_t tops(const Group& group, float largest, Origin origin) {
  constexpr std::uint32_t any = (1u << kPoints) - 1;
  if (!(largest > 0x1p-14f && largest < 0x1p24f)) return any;
  // Half the distance between neighbours is at most `relative` times the number, or `least`.
  const float relative = origin == Origin::bf16 ? 0x1p-8f : origin == Origin::fp16 ? 0x1p-11f : 0x1p-24f;
  const float least = origin == Origin::fp16 ? 0x1p-25f : 0.0f;
  const float room_of_place = 2.02f * relative;
  const float room = 2.02f * kPoints * least / largest + 1e-5f;
  constexpr int n = kPoints / kLanes;
  Floats per_weight[n];
  Bits dead[n] = {};
  for (int t = 0; t < kPoints; ++t) per_weight[t / kLanes].x[t % kLanes] = static_cast<float>(t) / largest;
  std::uint32_t alive = any;
  for (int i = 0; i < kGroup && alive > 1; ++i) {
    const float w = std::fabs(group.w[i]);
    alive = 0;
    for (int j = 0; j < n; ++j) {
      const Floats place = w * per_weight[j];
      dead[j] |= (Bits)(size(place - whole(place)).x > (place * room_of_place + room).x);
      alive |= (~signs(dead[j]) & kAllLanes) << (j * kLanes);
    }
  }
  return alive;
}

constexpr QuantiseKernels make_quantise_kernels() {
  return {measure, best_int8, best_int4, distinct, scales, tops, gives_back};
}

}  // namespace
}  // namespace layercoop::decode
