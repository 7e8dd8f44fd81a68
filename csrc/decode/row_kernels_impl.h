// The kernels of row_kernels.h over the vectors of floats that the including file has chosen.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "decode/row_kernels.h"
#include "simd/functions.h"

namespace layercoop::decode {
namespace {

using namespace simd;

static_assert(kPage == kLanes, "a page's scores of one query are one vector");

LAYERCOOP_TARGET void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* out) {
  const Floats16 scale = inverse_rms(sum_of_squares(x, width), width, eps);
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const int n = lanes_left(j, width);
    write(out + j, n, read(weight + j, n) * (read(x + j, n) * scale));
  }
}

LAYERCOOP_TARGET void add_row(const float* delta, std::int64_t width, float* x) {
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const int n = lanes_left(j, width);
    write(x + j, n, read(x + j, n) + read(delta + j, n));
  }
}

// cap * tanh(x / cap), tanh(u) = 1 - 2 / (exp(2u) + 1)
LAYERCOOP_INLINE Floats16 capped(Floats16 x, float cap) {
  const Floats16 e = exp(x * (2.0f / cap));
  return cap * (1.0f - 2.0f / (e + 1.0f));
}

LAYERCOOP_TARGET void scale_and_cap(float factor, float cap, std::int64_t width, float* x) {
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const int n = lanes_left(j, width);
    const Floats16 scaled = read(x + j, n) * factor;
    write(x + j, n, cap == 0.0f ? scaled : capped(scaled, cap));
  }
}

// Both activations are g / (1 + exp(-u)). For SiLU u = g; for GELU by tanh, since (1 + tanh(t)) / 2 = 1 / (1 +
// exp(-2t)), u = 2 sqrt(2 / pi) (g + 0.044715 g^3).
LAYERCOOP_TARGET void gated(const float* gate_up, Activation activation, std::int64_t width, float* out) {
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const Floats16 g = Floats16::load(gate_up + 2 * j);
    Floats16 u = g;
    if (activation == Activation::gelu_tanh) {
      const Floats16 cubic = fma(0.044715f * (g * g), g, g);
      u = 1.5957691216f * cubic;
    }
    const Floats16 active = g / (1.0f + exp(0.0f - u));
    store(out + j, active * Floats16::load(gate_up + 2 * j + kLanes));
  }
}

LAYERCOOP_TARGET void rotate_head(const float* cos, const float* sin, std::int64_t width, float* x) {
  const std::int64_t half = width / 2;
  for (std::int64_t j = 0; j < half; j += kLanes) {
    const int n = lanes_left(j, half);
    const Floats16 a = read(x + j, n);
    const Floats16 b = read(x + half + j, n);
    const Floats16 c = read(cos + j, n);
    const Floats16 s = read(sin + j, n);
    write(x + j, n, a * c - b * s);
    write(x + half + j, n, b * c + a * s);
  }
}

LAYERCOOP_TARGET std::int64_t largest_of(const float* x, std::int64_t width) {
  Floats16 most = -std::numeric_limits<float>::infinity();
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const int n = lanes_left(j, width);
    most = max(select_first(n, read(x + j, n), most), most);
  }
  const float value = largest(most);
  for (std::int64_t j = 0; j < width; ++j) {
    if (x[j] == value) return j;
  }
  return 0;  // all are NaN
}

LAYERCOOP_TARGET void store_fp32(const float* x, std::int64_t width, float* out) {
  for (std::int64_t j = 0; j < width; j += kLanes) store(out + j, read(x + j, lanes_left(j, width)));
}

LAYERCOOP_TARGET void store_bf16(const float* x, std::int64_t width, std::uint16_t* out) {
  for (std::int64_t j = 0; j < width; j += kLanes) {
    store(reinterpret_cast<Bf16*>(out) + j, read(x + j, lanes_left(j, width)));
  }
}

LAYERCOOP_TARGET void store_fp16(const float* x, std::int64_t width, std::uint16_t* out) {
  constexpr float most = 65504.0f;
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const Floats16 kept = min(most, max(-most, read(x + j, lanes_left(j, width))));
    store(reinterpret_cast<Fp16*>(out) + j, kept);
  }
}

LAYERCOOP_TARGET float store_int8(const float* x, std::int64_t width, std::int8_t* out) {
  float most = 0.0f;
  float finite = 0.0f;  // NaN if a number is not finite
  for (std::int64_t j = 0; j < width; ++j) {
    most = std::max(most, std::fabs(x[j]));
    finite += x[j] * 0.0f;
  }
  if (finite != 0.0f) {
    std::fill(out, out + (width + kLanes - 1) / kLanes * kLanes, std::int8_t{0});
    return finite;
  }
  const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
  std::int64_t j = 0;
  for (; j < width; ++j) out[j] = static_cast<std::int8_t>(std::nearbyint(x[j] * inverse));
  for (; j % kLanes != 0; ++j) out[j] = 0;
  return most / 127.0f;
}

// scores[i][at .. at + kPage] = the queries' products with the keys of one page.
template <typename T, int queries>
LAYERCOOP_INLINE void score_page(const Chunk& chunk, const T* keys, const float* scales, float (*scores)[kChunk],
                                 std::int64_t at) {
  Floats16 sums[queries] = {};
  for (std::int64_t d = 0; d < chunk.width; ++d) {
    const Floats16 column = Floats16::load(keys + d * kPage);
#pragma GCC unroll 6
    for (int i = 0; i < queries; ++i) sums[i] = fma(chunk.query[i][d], column, sums[i]);
  }
  const Floats16 scale = scales == nullptr ? chunk.scale : chunk.scale * Floats16::load(scales);
#pragma GCC unroll 6
  for (int i = 0; i < queries; ++i) {
    const Floats16 score = sums[i] * scale;
    store(scores[i] + at, chunk.cap == 0.0f ? score : capped(score, chunk.cap));
  }
}

// x in lanes first .. last, `other` elsewhere.
LAYERCOOP_INLINE Floats16 between(Floats16 x, std::int64_t first, std::int64_t last, float other) {
  const int low = static_cast<int>(std::clamp<std::int64_t>(first, 0, kLanes));
  const int high = static_cast<int>(std::clamp<std::int64_t>(last, 0, kLanes));
  return select_first(low, other, select_first(high, x, other));
}

// Scores begin .. end become exp(score - largest), or 0 for keys that the query does not see.
LAYERCOOP_INLINE void weigh(const Chunk& chunk, int query, std::int64_t begin, std::int64_t end, float* scores) {
  const std::int64_t first = chunk.first[query];
  const std::int64_t last = chunk.last[query];
  Floats16 most = kLowest;
  for (std::int64_t j = begin; j < end; j += kLanes) {
    most = max(between(Floats16::load(scores + j), first - j, last - j, kLowest), most);
  }
  const float shift = largest(most);
  Floats16 sum = 0.0f;
  for (std::int64_t j = begin; j < end; j += kLanes) {
    const Floats16 e = exp_of_term(Floats16::load(scores + j) - shift);
    const Floats16 kept = between(e, first - j, last - j, 0.0f);
    store(scores + j, kept);
    sum = sum + kept;
  }
  *chunk.largest[query] = shift;
  *chunk.sum[query] = total(sum);
}

template <typename T, int queries>
LAYERCOOP_TARGET void attend_some(const Chunk& chunk) {
  alignas(64) float scores[queries][kChunk];
  std::int64_t first = kChunk;
  std::int64_t last = 0;
  for (int i = 0; i < queries; ++i) {
    *chunk.sum[i] = 0.0f;
    if (chunk.first[i] >= chunk.last[i]) continue;
    first = std::min<std::int64_t>(first, chunk.first[i]);
    last = std::max<std::int64_t>(last, chunk.last[i]);
  }
  if (first >= last) return;
  const std::int64_t first_page = first / kPage;
  const std::int64_t last_page = (last + kPage - 1) / kPage;
  for (std::int64_t page = first_page; page < last_page; ++page) {
    score_page<T, queries>(chunk, reinterpret_cast<const T*>(chunk.keys[page]), chunk.key_scales[page], scores,
                           page * kPage);
  }
  for (int i = 0; i < queries; ++i) {
    if (chunk.first[i] < chunk.last[i]) {
      weigh(chunk, i, first_page * kPage, last_page * kPage, scores[i]);
    } else {
      std::fill(scores[i], scores[i] + kChunk, 0.0f);
    }
  }
  for (std::int64_t d = 0; d < chunk.padded_width; d += kLanes) {
    Floats16 sums[queries] = {};
    for (std::int64_t page = first_page; page < last_page; ++page) {
      const T* values = reinterpret_cast<const T*>(chunk.values[page]) + d;
      const float* scales = chunk.value_scales[page];
      const std::int64_t at = page * kPage;
      // Memory after the last token is not this sequence's, and may hold NaN.
      const std::int64_t keys = std::min(kPage, last - at);
      for (std::int64_t j = 0; j < keys; ++j) {
        Floats16 value = Floats16::load(values + j * chunk.padded_width);
        if (scales != nullptr) value = value * scales[j];
#pragma GCC unroll 6
        for (int i = 0; i < queries; ++i) sums[i] = fma(scores[i][at + j], value, sums[i]);
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < queries; ++i) store(chunk.out[i] + d, sums[i]);
  }
}

template <typename T>
LAYERCOOP_TARGET void attend(const Chunk& chunk) {
  switch (chunk.queries) {
    case 1: return attend_some<T, 1>(chunk);
    case 2: return attend_some<T, 2>(chunk);
    case 3: return attend_some<T, 3>(chunk);
    case 4: return attend_some<T, 4>(chunk);
    case 5: return attend_some<T, 5>(chunk);
    default: return attend_some<T, 6>(chunk);
  }
}

LAYERCOOP_TARGET void merge(float largest, float sum, const float* out, std::int64_t padded_width, float* total_largest,
                            float* total_sum, float* total_out) {
  if (sum == 0.0f) return;
  if (*total_sum == 0.0f) {
    *total_largest = largest;
    *total_sum = sum;
    std::copy(out, out + padded_width, total_out);
    return;
  }
  const float most = std::max(largest, *total_largest);
  const float before = std::exp(*total_largest - most);
  const float now = std::exp(largest - most);
  *total_largest = most;
  *total_sum = *total_sum * before + sum * now;
  for (std::int64_t j = 0; j < padded_width; j += kLanes) {
    store(total_out + j, fma(Floats16::load(out + j), now, Floats16::load(total_out + j) * before));
  }
}

constexpr RowKernels make_row_kernels() {
  return {rms_norm,   add_row,    scale_and_cap, gated,         rotate_head,  largest_of,   store_fp32,
          store_bf16, store_fp16, store_int8,    attend<float>, attend<Bf16>, attend<Fp16>, attend<std::int8_t>,
          merge};
}

}  // namespace
}  // namespace layercoop::decode
