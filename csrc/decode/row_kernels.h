// The table of what a token needs besides matrix products, for a row or a head at a time.
//
// All numbers are fp32, except keys and values: these are in pages (pages.h) as fp32, bf16, fp16, or int8 with a scale
// for each token. The kernels use no threads and allocate nothing. The results of a row or a query do not depend, bit
// for bit, on others that are computed with it.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

namespace layercoop::decode {

enum class Activation { silu, gelu_tanh };

// The queries of one key head that a call takes together, and the keys of one partial result, in whole pages.
constexpr int kQueries = 6;
constexpr std::int64_t kPage = 16;    // tokens
constexpr std::int64_t kChunk = 128;  // keys; chunks begin at multiples of it

// The keys and values of one key head in a chunk, and the attention of some queries over them:
//
//     score_s = cap * tanh(scale * q . k_s / cap), or scale * q . k_s where cap is 0,   first <= s < last
//     largest = max_s score_s;   sum = sum_s exp(score_s - largest);   out = sum_s exp(score_s - largest) v_s
//
// If a query sees no key of the chunk its sum is 0, and the rest is not written.
struct Chunk {
  const std::uint8_t* keys[kChunk / kPage];    // of a page: [width, kPage]
  const std::uint8_t* values[kChunk / kPage];  // of a page: [kPage, padded_width]
  const float* key_scales[kChunk / kPage];     // of a page: [kPage]; int8 only
  const float* value_scales[kChunk / kPage];
  std::int64_t width;
  std::int64_t padded_width;  // the next multiple of 16
  float scale;
  float cap;
  int queries;
  const float* query[kQueries];  // [width]
  int first[kQueries];           // in the chunk
  int last[kQueries];
  float* largest[kQueries];
  float* sum[kQueries];
  float* out[kQueries];  // [padded_width]
};

struct RowKernels {
  // out = weight * x / sqrt(mean(x^2) + eps); out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t width, float* out);

  // x += delta
  void (*add)(const float* delta, std::int64_t width, float* x);

  // x *= factor, then x = cap * tanh(x / cap) where cap is not 0.
  void (*scale_and_cap)(float factor, float cap, std::int64_t width, float* x);

  // out[i] = activation(gate[i]) * up[i]; sixteen numbers of gate and sixteen of up alternate. `width` is a
  // multiple of 16.
  void (*gated)(const float* gate_up, Activation activation, std::int64_t width, float* out);

  // x = x * cos + rotate_half(x) * sin in place; cos and sin are [width / 2], the same for both halves. `width` is
  // even.
  void (*rotate)(const float* cos, const float* sin, std::int64_t width, float* x);

  // The index of the largest number, the first among equals; NaN never is the largest. `width` is at least 1.
  std::int64_t (*largest)(const float* x, std::int64_t width);

  // Store a token's value in its row of a page, [padded_width], padding included. store_int8 returns the scale: NaN if
  // a number is not finite.
  void (*store_fp32)(const float* x, std::int64_t width, float* out);
  void (*store_bf16)(const float* x, std::int64_t width, std::uint16_t* out);
  void (*store_fp16)(const float* x, std::int64_t width, std::uint16_t* out);  // clamped to the range of fp16
  float (*store_int8)(const float* x, std::int64_t width, std::int8_t* out);

  void (*attend_fp32)(const Chunk& chunk);
  void (*attend_bf16)(const Chunk& chunk);
  void (*attend_fp16)(const Chunk& chunk);
  void (*attend_int8)(const Chunk& chunk);

  // Merges a chunk's result into a query's total, which begins as {any, 0, any}; chunks come in order.
  void (*merge)(float largest, float sum, const float* out, std::int64_t padded_width, float* total_largest,
                float* total_sum, float* total_out);
};

extern const RowKernels kRowKernelsPortable, kRowKernelsAvx2, kRowKernelsAvx512, kRowKernelsNeon;

// The table of the level in force.
const RowKernels& row_kernels() noexcept;

}  // namespace layercoop::decode
