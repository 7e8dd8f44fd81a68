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

// A root-mean-square norm: weight * T(u), or in Gemma's form T((1 + weight) * u), u = x / sqrt(mean(x^2) + eps).
template <typename T>
struct Norm {
  const T* weight;  // null: there is no such norm
  float eps;
  bool gemma;
};

// branch = T(factor * after(delta)); sum = x + branch; without a delta, sum is x and is not written.
// out = norm(sum). Every result is rounded to T.
// `sum` may be `x` or `delta`, and so may `out`.
template <typename T>
struct RmsNorm {
  const T* x;      // [rows, width]
  const T* delta;  // [rows, width] or null
  Norm<T> after;   // [width]
  float factor;
  Norm<T> norm;  // [width]; without it only `sum` is written
  std::int64_t rows;
  std::int64_t width;
  T* sum;  // [rows, width] or null
  T* out;  // [rows, width] or null
};

// In place, for each of the first query_heads + key_heads groups of `width` columns of a row, h being the group:
//     h = norm(h) with the norm of queries or keys, where there is one;   h = h * cos + rotate_half(h) * sin,
//     rotate_half(h) = (-h[width/2:], h[:width/2]).
// A norm's mean is over one head, or with `joint_norms` over all heads of queries or keys. Row r is at position
// r % tokens. Columns past those groups are not touched. Products and sum are rounded to Angle, results to T.
template <typename T, typename Angle>
struct Rotary {
  T* x;                // [rows, columns]
  const Angle* cos;    // [tokens, width]
  const Angle* sin;    // [tokens, width]
  Norm<T> query_norm;  // [width], or [query_heads * width] where joint
  Norm<T> key_norm;    // [width], or [key_heads * width] where joint
  bool joint_norms;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t tokens;
  std::int64_t width;  // even
  std::int64_t query_heads;
  std::int64_t key_heads;
};

// out = T(activation(gate)) * up: silu(g) = g / (1 + exp(-g)),
// gelu(g) = g / 2 (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))).
enum class Activation { silu, gelu };

template <typename T>
struct Gated {
  const T* gate_up;  // [rows, 2 * width]: a row's gate, then its up
  Activation activation;
  std::int64_t rows;
  std::int64_t width;
  T* out;  // [rows, width]
};

// Causal softmax attention inside each window of `tokens` rows: out_t = sum_s softmax_s(z_ts) v_s over s <= t, with a
// sliding window over s > t - sliding_window alone. z_ts = scale * q_t . k_s; with a cap, cap * tanh(z_ts / cap) takes
// its place. Query head h uses key head h / (heads / kv_heads). Scores and their sum stay fp32. Every window has the
// same queries: those at the tokens `asked`. A query's result has the same bits as when all tokens are asked for, and
// the queries of other rows are not read.
//
// With `positions` a window is not one text but a tree of texts, depth first: a row at position p sees itself and, at
// each position below p (with a sliding window, above p - sliding_window), the latest earlier row at that position. A
// row's result has the bits that it has in a window that holds its own text alone.
template <typename T>
struct Attention {
  const T* qkv;  // [windows * tokens, (heads + 2 * kv_heads) * width]: queries, keys, values
  std::int64_t windows;
  std::int64_t tokens;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t width;
  float scale;                  // > 0
  float cap;                    // 0: none
  std::int64_t sliding_window;  // tokens that a query sees, itself included; 0: all before it
  const std::int64_t* asked;    // [n_asked], ascending, each below `tokens`
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
template <typename T, typename Angle>
void run(const Rotary<T, Angle>& work);
template <typename T>
void run(const Gated<T>& work);
template <typename T>
void run(const Attention<T>& work);
template <typename T>
void run(const Loss<T>& work);

}  // namespace layercoop::blocks
