// The parts of a llama-shaped block, and of the loss behind it, that are no matrix products: each reads and writes its
// memory once.
//
// T is float or Bf16. Arithmetic is in fp32, and rounds to T wherever the transformers library's own modules do. What
// comes out for a row (for attention: for a window) depends on that row alone, bit for bit, whatever else is in the
// batch and however the work is shared among threads. NaN and infinity go through as arithmetic has it.
//
// Matrices are row-major and contiguous; shapes and values are the caller's to check (bind_blocks.cpp does).
#pragma once

#include <cstdint>

#include "half.h"

namespace layercoop::blocks {

// sum = x + delta (where there is a delta: otherwise sum = x and is not written), rounded to T;
// out = weight * T(sum / sqrt(mean(sum^2) + eps)).
// `sum` may be `x` or `delta`, `out` may be either too.
template <typename T>
struct RmsNorm {
  const T* x;       // [rows, width]
  const T* delta;   // [rows, width] or null
  const T* weight;  // [width]
  float eps;
  std::int64_t rows;
  std::int64_t width;
  T* sum;  // [rows, width] or null
  T* out;  // [rows, width]
};

// In place, for each of the first query_heads + key_heads groups of `width` columns of a row, h being the group:
//     h = RmsNorm(h) with the weight of its kind, where there is one;   h = h * cos + rotate_half(h) * sin,
//     rotate_half(h) = (-h[width/2:], h[:width/2]).
// Row r stands at position r % tokens. Columns past those groups are left alone.
template <typename T>
struct Rotary {
  T* x;                 // [rows, columns]
  const T* cos;         // [tokens, width]
  const T* sin;         // [tokens, width]
  const T* query_norm;  // [width] or null
  const T* key_norm;    // [width] or null
  float eps;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t tokens;
  std::int64_t width;  // even
  std::int64_t query_heads;
  std::int64_t key_heads;
};

// out = T(silu(gate)) * up, silu(g) = g / (1 + exp(-g)).
template <typename T>
struct Swiglu {
  const T* gate_up;  // [rows, 2 * width]: a row's gate, then its up
  std::int64_t rows;
  std::int64_t width;
  T* out;  // [rows, width]
};

// Causal softmax attention inside each window of `tokens` rows: out_t = sum_{s <= t} softmax_s(scale * q_t . k_s) v_s.
// Query head h uses key head h / (heads / kv_heads). Scores and their sum stay fp32. Every window has the same queries:
// those at the tokens `asked`, each to the bits it has among all; what other rows hold for queries is never read.
//
// With `positions` a window is not one text but a tree of texts, written down depth first: a row at position p sees
// itself and at each position below p the latest row before it that stands there. A row's result has the bits that it
// has in a window that holds its own text alone.
template <typename T>
struct Attention {
  const T* qkv;  // [windows * tokens, (heads + 2 * kv_heads) * width]: queries, keys, values
  std::int64_t windows;
  std::int64_t tokens;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t width;
  float scale;                // > 0
  const std::int64_t* asked;  // [n_asked], ascending, each below `tokens`
  std::int64_t n_asked;
  // [pattern] or null. Row r stands at positions[r % pattern]; pattern is a multiple of tokens. A window begins at 0
  // and no row is more than one position beyond the row before it.
  const std::int64_t* positions;
  std::int64_t pattern;
  std::int64_t depth;  // positions there are, 0 .. depth - 1; `tokens` without `positions`
  T* out;              // [windows * n_asked, heads * width]
};

// A row of logits seen so far: the largest, the sum of exp(logit - largest), and the target's own logit. A row starts
// as {lowest finite float, 0, 0}. -log softmax(target) = largest + log(sum) - target.
struct Running {
  float largest;
  float sum;
  float target;
};

// Takes in words first_word .. first_word + words of a row's logits, z = cap * tanh(scale * logit / cap), or
// z = scale * logit where cap is 0. With a teacher, whose logits are treated alike, `teacher_running.target` is not a
// logit but sum_v exp(z_teacher - largest) (z_teacher - z), so that
//     KL(teacher || student) = teacher.target / teacher.sum - lse(teacher) + lse(student).
template <typename T>
struct Loss {
  const T* logits;              // [rows, words]
  const T* teacher;             // [rows, words] or null
  const std::int64_t* targets;  // [rows]
  std::int64_t rows;
  std::int64_t words;
  std::int64_t first_word;
  float scale;
  float cap;
  Running* running;          // [rows]
  Running* teacher_running;  // [rows], null where teacher is
};

template <typename T>
void run(const RmsNorm<T>& work);
template <typename T>
void run(const Rotary<T>& work);
template <typename T>
void run(const Swiglu<T>& work);
template <typename T>
void run(const Attention<T>& work);
template <typename T>
void run(const Loss<T>& work);

}  // namespace layercoop::blocks
