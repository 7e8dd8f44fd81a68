// Gradients of the parts of a llama-shaped block that blocks.h computes, a loss together with its gradient, and the
// step that gradients are for: each reads and writes its memory once or twice, while it is in cache.
//
// T is float or Bf16. Arithmetic is in fp32, and results are rounded to T once. The result of a row depends on that row
// alone, and the gradient of a weight sums over rows in order, however the work is divided among threads. NaN and
// infinity propagate as in ordinary arithmetic.
//
// Matrices are row-major and contiguous. The caller checks shapes and values (bind_slopes.cpp does).
#pragma once

#include <cstdint>

#include "half.h"

namespace layercoop::blocks {

// Of y = T(silu(g)) u, silu(g) = g s with s = 1 / (1 + exp(-g)), for a slope d of y:
//     dg = d u s (1 + g (1 - s)),    du = d T(silu(g))
template <typename T>
struct GatedSlopes {
  const T* gate_up;  // [rows, 2 * width]: a row's gates, then its ups
  const T* slope;    // [rows, width]
  std::int64_t rows;
  std::int64_t width;
  T* out;  // [rows, 2 * width]: dg, then du
};

// Of y = w x r, r = 1 / sqrt(mean(x^2) + eps), for a slope d of y and with u = w d:
//     out = base + r u - x r^3 mean(u x)
template <typename T>
struct NormSlopes {
  const T* x;       // [rows, width]
  const T* weight;  // [width]
  const T* slope;   // [rows, width]
  const T* base;    // [rows, width] or null: zeros
  float eps;
  std::int64_t rows;
  std::int64_t width;
  float* factors;  // [rows]: r of each row
  T* out;          // [rows, width]; neither `slope` nor `x`, which the slopes of the weight read after it
};

// Of the same y for its weight: out = sum over rows of d x r.
template <typename T>
struct NormWeightSlopes {
  const T* x;            // [rows, width]
  const T* slope;        // [rows, width]
  const float* factors;  // [rows]
  std::int64_t rows;
  std::int64_t width;
  T* out;  // [width]
};

// Of blocks.h's attention for all tokens, without cap, sliding window and trees. With P the softmax of a head's scores,
// d the slope of its result:
//     of the scores S:  dS = P o (d V' - rows(d . mixed)),    dQ = scale dS K,    dK = scale dS' Q,    dV = P' d
// A window's slopes depend on that window alone. Source: Dao et al., FlashAttention (arXiv 2205.14135), appendix B.
template <typename T>
struct AttentionSlopes {
  const T* qkv;    // [windows * tokens, (heads + 2 * kv_heads) * width]: queries, keys, values
  const T* slope;  // [windows * tokens, heads * width]
  const T* mixed;  // [windows * tokens, heads * width]: the result
  std::int64_t windows;
  std::int64_t tokens;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t width;
  float scale;  // > 0
  T* out;       // as qkv
};

// A row's divergence from a teacher, KL(p || q) with p = softmax(t) and q = softmax(z), and its slopes, which take the
// place of the logits: dlogit = scale (1 - (z / cap)^2) (q - p). z = cap * tanh(scale * logit / cap), or scale * logit
// where cap is 0; t likewise from the teacher's logits with its own scale and cap.
template <typename T>
struct Divergence {
  T* logits;         // [rows, columns]
  const T* teacher;  // [rows, columns]
  std::int64_t rows;
  std::int64_t columns;
  float scale;
  float cap;
  float teacher_scale;
  float teacher_cap;
  float* values;  // [rows]
};

// The same for a teacher that is known by `named` tokens of each row and one event that stands for all others:
//     kl = sum_k p_k (log p_k - log q[t_k]) + s (log s - log o),    o = sum of q over the other tokens
// whose slopes are q[t_k] - p_k, and q[v] (1 - s / o) for another token v.
template <typename T>
struct NamedDivergence {
  T* logits;                   // [rows, columns]
  const std::int64_t* tokens;  // [rows, named], those of a row all different
  const float* log_probs;      // [rows, named]
  const float* rest;           // [rows]: s
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t named;
  float scale;
  float cap;
  float* values;  // [rows]
};

// A step of AdamW (Loshchilov and Hutter, arXiv 1711.05101) without decay, with g = factor * gradient:
//     m = m + (1 - beta1) (g - m),    v = beta2 v + (1 - beta2) g^2,    value = value - rate m / (sqrt(v) / root + eps)
// Values and moments stay fp32; weight = T(value).
template <typename T>
struct AdamW {
  const T* gradient;  // [n]
  std::int64_t n;
  float factor;
  float rest1;  // 1 - beta1
  float beta2;
  float rest2;  // 1 - beta2
  float eps;
  float rate;     // the learning rate / (1 - beta1^steps)
  float root;     // sqrt(1 - beta2^steps)
  float* value;   // [n]
  float* first;   // [n]: m
  float* second;  // [n]: v
  T* weight;      // [n] or null
};

// Sums of the squares of kSquaresAtOnce numbers each, in fp32.
constexpr std::int64_t kSquaresAtOnce = 4096;

template <typename T>
struct SumsOfSquares {
  const T* x;  // [n]
  std::int64_t n;
  float* sums;  // [ceil(n / kSquaresAtOnce)]
};

template <typename T>
void run(const GatedSlopes<T>& work);
template <typename T>
void run(const NormSlopes<T>& work);
template <typename T>
void run(const NormWeightSlopes<T>& work);
template <typename T>
void run(const AttentionSlopes<T>& work);
template <typename T>
void run(const Divergence<T>& work);
template <typename T>
void run(const NamedDivergence<T>& work);
template <typename T>
void run(const AdamW<T>& work);
template <typename T>
void run(const SumsOfSquares<T>& work);

}  // namespace layercoop::blocks
