// The kernels of quantise_kernels.h that tell grids, as quantise_impl.h says, which the including file has included.
#pragma once

#include "decode/quantise_kernels_impl.h"

namespace layercoop::decode {
namespace {

LAYERCOOP_TARGET int distinct(const Group& group, float* found) {
  // Those that equal none before them, without a branch that nobody could predict.
  float first[kGroup];
  int count = 0;
  for (int i = 0; i < kGroup; ++i) {
    const Part x = all(group.w[i]);
    std::uint32_t same = 0;
    for (int j = 0; j < kParts; ++j) same |= signs((Bits)(part(group, j) == x)) << (j * kPart);
    first[count] = group.w[i];
    count += (same & ((1u << i) - 1)) == 0;
  }
  if (count > kPoints) return -1;
  // Each to its rank.
  float among[kPoints];
  for (int i = 0; i < kPoints; ++i) among[i] = i < count ? first[i] : std::numeric_limits<float>::infinity();
  Part parts[kPoints / kPart];
  std::memcpy(parts, among, sizeof parts);
  for (int i = 0; i < count; ++i) {
    const Part x = all(first[i]);
    std::uint32_t less = 0;
    for (int j = 0; j < kPoints / kPart; ++j) less |= signs((Bits)(parts[j] < x)) << (j * kPart);
    found[__builtin_popcount(less)] = first[i];
  }
  return count;
}

LAYERCOOP_INLINE Part to_bf16_and_back(Part x) {
  const Bits bits = (Bits)x;
  return (Part)((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

// Half the distance of neighbours in fp16 is at most this part of a number, or 2^-25.
constexpr float kHalfSlack = 0x1.01p-11f;

template <Origin origin>
LAYERCOOP_TARGET std::uint64_t scales_that_fit(const Group& group, int first, int count) {
  std::uint64_t found = 0;
  for (int at = 0; at < count; at += kPart) {
    Bits half;
    for (int j = 0; j < kPart; ++j) half[j] = static_cast<std::uint32_t>(std::max(1, first + at + j));
    const Part scale = (Part)(half << 13) * 0x1p112f;
    const Part inverse = 1.0f / scale;
    std::uint32_t alive = kAllParts;
    for (int i = 0; i < group.n && alive != 0; ++i) {
      const Part w = all(group.w[i]);
      const Part product = scale * whole(w * inverse);
      Bits fits;
      if (origin == Origin::bf16) {
        fits = (Bits)(to_bf16_and_back(product) == w);
      } else if (origin == Origin::fp16) {
        fits = (Bits)(size(product - w) <= size(w) * kHalfSlack + 0x1.01p-25f);
      } else {
        fits = (Bits)(product == w);
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
  // Four at a time, in doubles. Whole, for |x| < 2^51: the sum has no bits left for a fraction.
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
  // Half the distance of neighbours is at most `relative` of a number, or `least`.
  const float relative = origin == Origin::bf16 ? 0x1p-8f : origin == Origin::fp16 ? 0x1p-11f : 0x1p-24f;
  const float least = origin == Origin::fp16 ? 0x1p-25f : 0.0f;
  const float room_of_place = 2.02f * relative;
  const float room = 2.02f * kPoints * least / largest + 1e-5f;
  constexpr int n = kPoints / kPart;
  Part per_weight[n];
  Bits dead[n] = {};
  for (int t = 0; t < kPoints; ++t) per_weight[t / kPart][t % kPart] = static_cast<float>(t) / largest;
  std::uint32_t alive = any;
  for (int i = 0; i < kGroup && alive > 1; ++i) {
    const float w = std::fabs(group.w[i]);
    alive = 0;
    for (int j = 0; j < n; ++j) {
      const Part place = w * per_weight[j];
      dead[j] |= (Bits)(size(place - whole(place)) > place * room_of_place + room);
      alive |= (~signs(dead[j]) & kAllParts) << (j * kPart);
    }
  }
  return alive;
}

constexpr QuantiseKernels make_quantise_kernels() {
  return {measure, best_int8, best_int4, distinct, scales, tops, gives_back};
}

}  // namespace
}  // namespace layercoop::decode
