// The parts of a llama-shaped block, and of the loss after it, that are not matrix products: each reads and writes its
// memory once.
//
// T is float or Bf16. Arithmetic is in fp32, and rounds to T wherever the transformers library's own modules do. The
// result of a row (for attention: of a window) depends on that row alone, bit for bit, whatever else is in the batch
// and however the work is divided among threads. NaN and infinity propagate as in ordinary arithmetic.
//
// Matrices are row-major and contiguous. The caller checks shapes and values (bind_blocks.cpp does).
#pragma once

#include <cstdint>

#include "half.h"

namespace layercoop::blocks {

// sum = x + delta, rounded to T; without a delta, sum is x and is not written.
// out = weight * T(sum / sqrt(mean(sum^2) + eps)).
// `sum` may be `x` or `delta`, and so may `out`.
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
//     h = RmsNorm(h) with the weight of queries or keys, where there is one;   h = h * cos + rotate_half(h) * sin,
//     rotate_half(h) = (-h[width/2:], h[:width/2]).
// Row r is at position r % tokens. Columns past those groups are not touched.
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
// those at the tokens `asked`. A query's result has the same bits as when all tokens are asked for, and the queries of
// other rows are not read.
//
// With `positions` a window is not one text but a tree of texts, depth first: a row at position p sees itself and, at
// each position below p, the latest earlier row at that position. A row's result has the bits that it has in a window
// that holds its own text alone.
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
  // [pattern] or null. Row r is at positions[r % pattern]; pattern is a multiple of tokens. A window begins at 0, and
  // no row is more than one position beyond the row before it.
  const std::int64_t* positions;
  std::int64_t pattern;
  std::int64_t depth;  // number of positions, 0 .. depth - 1; `tokens` without `positions`
  T* out;              // [windows * n_asked, heads * width]
};

// What a row of logits has shown so far: the largest logit, the sum of exp(logit - largest), and the target's logit. A
// row starts as {lowest finite float, 0, 0}. -log softmax(target) = largest + log(sum) - target.
struct Running {
  float largest;
  float sum;
  float target;
};

// Takes in the logits of tokens first_token .. first_token + columns: z = cap * tanh(scale * logit / cap), or
// z = scale * logit where cap is 0. With a teacher, whose logits are treated alike, `teacher_running.target` is not a
// logit but sum_v exp(z_teacher - largest) (z_teacher - z), so that
//     KL(teacher || student) = teacher.target / teacher.sum - lse(teacher) + lse(student).
template <typename T>
struct Loss {
  const T* logits;              // [rows, columns]
  const T* teacher;             // [rows, columns] or null
  const std::int64_t* targets;  // [rows]
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t first_token;
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
