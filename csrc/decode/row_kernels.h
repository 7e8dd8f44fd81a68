// What a token needs besides matrix products, a row or a head at a time, once an instruction set.
//
// All numbers are fp32 but keys and values, which lie in pages (pages.h) as fp32, bf16, fp16 or int8 with a scale a
// token. No threads, no allocation. A row's or a query's results do not depend on those handled beside it, bit for bit.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

namespace layercoop::decode {

enum class Activation { silu, gelu_tanh };

// Queries of one key head that are handled together, and keys of one partial result: whole pages.
constexpr int kQueries = 6;
constexpr std::int64_t kPage = 16;    // tokens
constexpr std::int64_t kChunk = 128;  // keys, from a multiple of as many on

// The keys and values of one key head in a chunk, and what some queries find there:
//
//     score_s = cap * tanh(scale * q . k_s / cap), or scale * q . k_s where cap is 0,   first <= s < last
//     largest = max_s score_s;   sum = sum_s exp(score_s - largest);   out = sum_s exp(score_s - largest) v_s
//
// Where a query sees no key of the chunk its sum is 0, and the rest is left as it was.
struct Chunk {
  const std::uint8_t* keys[kChunk / kPage];    // of a page: [width, kPage]
  const std::uint8_t* values[kChunk / kPage];  // of a page: [kPage, padded_width]
  const float* key_scales[kChunk / kPage];     // of a page: [kPage]; int8 alone
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

  // out[i] = activation(gate[i]) * up[i]; gate and up stand by turns, sixteen of one, sixteen of the other. `width` is
  // a multiple of 16.
  void (*gated)(const float* gate_up, Activation activation, std::int64_t width, float* out);

  // x = x * cos + rotate_half(x) * sin in place; cos and sin are [width / 2], alike for both halves. `width` is even.
  void (*rotate)(const float* cos, const float* sin, std::int64_t width, float* x);

  // The first of the largest numbers. NaN is larger than none. `width` is at least 1.
  std::int64_t (*largest)(const float* x, std::int64_t width);

  // A token's value to its row of a page, [padded_width]; the padding is written too. The last returns the scale, NaN
  // where a number is not finite.
  void (*store_fp32)(const float* x, std::int64_t width, float* out);
  void (*store_bf16)(const float* x, std::int64_t width, std::uint16_t* out);
  void (*store_fp16)(const float* x, std::int64_t width, std::uint16_t* out);  // beyond fp16: its largest number
  float (*store_int8)(const float* x, std::int64_t width, std::int8_t* out);

  void (*attend_fp32)(const Chunk& chunk);
  void (*attend_bf16)(const Chunk& chunk);
  void (*attend_fp16)(const Chunk& chunk);
  void (*attend_int8)(const Chunk& chunk);

  // Takes a chunk's partial result into a query's so far; from {any, 0, any} on, in the order of the chunks.
  void (*merge)(float largest, float sum, const float* out, std::int64_t padded_width, float* total_largest,
                float* total_sum, float* total_out);
};

extern const RowKernels kRowKernelsPortable, kRowKernelsAvx2, kRowKernelsAvx512;

// Those of the level in force.
const RowKernels& row_kernels() noexcept;

}  // namespace layercoop::decode
