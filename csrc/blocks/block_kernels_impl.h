// The kernels of block_kernels.h over the vectors that the including file has chosen.
//
// No lambdas here: a lambda does not inherit its function's target attribute.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "blocks/attention_impl.h"
#include "blocks/block_kernels.h"
#include "blocks/logits_impl.h"
#include "cpu/aligned.h"
#include "simd/functions.h"

namespace layercoop::blocks {
namespace {

using namespace simd;

// Sixteen numbers x of a row, normed: `scale` is 1 / sqrt(mean(x^2) + eps), `type` says what T is.
template <typename T>
LAYERCOOP_INLINE Floats16 normed(Floats16 x, float scale, Floats16 weight, bool gemma, const T* type) {
  const Floats16 unit = x * scale;
  return rounded(gemma ? (weight + 1.0f) * unit : weight * rounded(unit, type), type);
}

// out = norm(x) with the weights from `weight` on, of a row whose scale is known
template <typename T, typename Out>
LAYERCOOP_INLINE void scale_row(const T* x, const T* weight, bool gemma, float scale, std::int64_t width, Out* out) {
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const int n = lanes_left(j, width);
    write(out + j, n, normed(read(x + j, n), scale, read(weight + j, n), gemma, x));
  }
}

// sum = x + T(factor * after(delta))
template <typename T>
LAYERCOOP_INLINE void add_branch(const RmsNorm<T>& work, const T* x, const T* delta, T* sum) {
  const Norm<T>& after = work.after;
  const float scale =
      after.weight == nullptr ? 1.0f : inverse_rms(sum_of_squares(delta, work.width), work.width, after.eps);
  for (std::int64_t j = 0; j < work.width; j += kLanes) {
    const int n = lanes_left(j, work.width);
    Floats16 branch = read(delta + j, n);
    if (after.weight != nullptr) branch = normed(branch, scale, read(after.weight + j, n), after.gemma, x);
    if (work.factor != 1.0f) branch = rounded(branch * work.factor, x);
    write(sum + j, n, read(x + j, n) + branch);
  }
}

template <typename T>
LAYERCOOP_TARGET void rms_norm(const RmsNorm<T>& work, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t at = row * work.width;
    const T* x = work.x + at;
    if (work.delta != nullptr) {
      add_branch(work, x, work.delta + at, work.sum + at);
      x = work.sum + at;
    }
    if (work.norm.weight == nullptr) continue;
    const float scale = inverse_rms(sum_of_squares(x, work.width), work.width, work.norm.eps);
    scale_row(x, work.norm.weight, work.norm.gemma, scale, work.width, work.out + at);
  }
}

// x * cos + rotate_half(x) * sin for one head; each product and the sum are rounded to Angle, as torch does. `x` may be
// `out`.
template <typename T, typename In, typename Angle>
LAYERCOOP_INLINE void rotate(const In* x, const Angle* cos, const Angle* sin, std::int64_t width, T* out) {
  const std::int64_t half = width / 2;
  for (std::int64_t j = 0; j < half; j += kLanes) {
    const int n = lanes_left(j, half);
    const Floats16 a = read(x + j, n);
    const Floats16 b = read(x + half + j, n);
    const Floats16 a_cos = rounded(a * read(cos + j, n), cos);
    const Floats16 b_sin = rounded(b * read(sin + j, n), cos);
    const Floats16 b_cos = rounded(b * read(cos + half + j, n), cos);
    const Floats16 a_sin = rounded(a * read(sin + half + j, n), cos);
    write(out + j, n, a_cos - b_sin);
    write(out + half + j, n, b_cos + a_sin);
  }
}

// The heads of one kind of a row.
template <typename T, typename Angle>
LAYERCOOP_INLINE void rotate_heads(const Rotary<T, Angle>& work, const Norm<T>& norm, std::int64_t position,
                                   std::int64_t heads, T* x, float* space) {
  const std::int64_t width = work.width;
  const std::int64_t mean_over = work.joint_norms ? heads * width : width;
  float scale = 1.0f;
  for (std::int64_t at = 0; at < heads * width; at += width) {
    if (norm.weight == nullptr) {
      rotate(x + at, work.cos + position, work.sin + position, width, x + at);
      continue;
    }
    const std::int64_t within = at % mean_over;
    if (within == 0) scale = inverse_rms(sum_of_squares(x + at, mean_over), mean_over, norm.eps);
    scale_row(x + at, norm.weight + within, norm.gemma, scale, width, space);
    rotate(space, work.cos + position, work.sin + position, width, x + at);
  }
}

template <typename T, typename Angle>
LAYERCOOP_TARGET void rotary(const Rotary<T, Angle>& work, std::int64_t begin, std::int64_t end) {
  std::vector<float> space(static_cast<std::size_t>(work.width));
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t position = (row % work.tokens) * work.width;
    T* x = work.x + row * work.columns;
    rotate_heads(work, work.query_norm, position, work.query_heads, x, space.data());
    rotate_heads(work, work.key_norm, position, work.key_heads, x + work.query_heads * work.width, space.data());
  }
}

// Both activations are g / (1 + exp(-u)): u = g for SiLU; for GELU by tanh, since
// (1 + tanh(t)) / 2 = 1 / (1 + exp(-2t)), u = 2 sqrt(2 / pi) (g + 0.044715 g^3).
template <typename T>
LAYERCOOP_TARGET void gated(const Gated<T>& work, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const T* gate = work.gate_up + row * 2 * work.width;
    const T* up = gate + work.width;
    T* out = work.out + row * work.width;
    for (std::int64_t j = 0; j < work.width; j += kLanes) {
      const int n = lanes_left(j, work.width);
      const Floats16 g = read(gate + j, n);
      Floats16 u = g;
      if (work.activation == Activation::gelu) u = 1.5957691216f * fma(0.044715f * (g * g), g, g);
      const Floats16 active = g / (1.0f + exp(0.0f - u));
      write(out + j, n, rounded(active, gate) * read(up + j, n));
    }
  }
}

// score -> cap * tanh(scale * score / cap), tanh(u) = 1 - 2 / (exp(2u) + 1), in whole vectors.
LAYERCOOP_TARGET void cap_scores(float* scores, std::int64_t first, std::int64_t n, float scale, float cap) {
  for (std::int64_t j = round_down(first, kLanes); j < n; j += kLanes) {
    const Floats16 e = exp(Floats16::load(scores + j) * (2.0f * scale / cap));
    store(scores + j, cap * (1.0f - 2.0f / (e + 1.0f)));
  }
}

// What attention keeps in cache for one head: keys (transposed) and values in fp32, at each position those written
// last, and the scores of six queries. Columns are padded to whole vectors.
struct AttentionSpace {
  std::int64_t token_columns;
  std::int64_t width_columns;
  cpu::Aligned<float> keys;     // [width, token_columns]
  cpu::Aligned<float> values;   // [depth, width_columns]
  cpu::Aligned<float> queries;  // [6, width_columns]
  cpu::Aligned<float> scores;   // [6, token_columns]
  cpu::Aligned<float> out;      // [6, width_columns]

  AttentionSpace(std::int64_t depth, std::int64_t width)
      : token_columns(round_up(depth, kLanes)),
        width_columns(round_up(width, kLanes)),
        keys(static_cast<std::size_t>(width * token_columns)),
        values(static_cast<std::size_t>(depth * width_columns)),
        queries(static_cast<std::size_t>(kTileRows * width_columns)),
        scores(static_cast<std::size_t>(kTileRows * token_columns)),
        out(static_cast<std::size_t>(kTileRows * width_columns)) {}
};

// Consecutive rows, the first of them at `position`.
template <typename T>
LAYERCOOP_INLINE void load_keys_and_values(const Attention<T>& work, const T* rows, std::int64_t count,
                                           std::int64_t position, std::int64_t columns, std::int64_t kv_head,
                                           AttentionSpace& space) {
  const std::int64_t first_key = (work.heads + kv_head) * work.width;
  const std::int64_t first_value = first_key + work.kv_heads * work.width;
  float* row = space.queries.data();
  for (std::int64_t t = 0; t < count; ++t) {
    convert_row(rows + t * columns + first_key, work.width, row);
    for (std::int64_t j = 0; j < work.width; ++j) {
      space.keys[static_cast<std::size_t>(j * space.token_columns + position + t)] = row[j];
    }
    convert_row(rows + t * columns + first_value, work.width,
                space.values.data() + (position + t) * space.width_columns);
  }
}

// The first position that a query at this one sees.
template <typename T>
LAYERCOOP_INLINE std::int64_t first_seen(const Attention<T>& work, std::int64_t position) {
  return work.sliding_window == 0 ? 0 : std::max<std::int64_t>(0, position - work.sliding_window + 1);
}

// Attention of at most six queries of one head, at `tokens` of the window. They belong to one run of rows at
// consecutive positions, in which token `first` is at `position`. If there are fewer than six, the remaining rows hold
// old data whose results are not used. A query's bits do not depend on the others: keys that it does not see get scores
// of zero, which add nothing.
template <typename T>
LAYERCOOP_INLINE void attend(const Attention<T>& work, const T* rows, const std::int64_t* tokens, std::int64_t queries,
                             std::int64_t first, std::int64_t position, std::int64_t columns, T* out, std::int64_t head,
                             AttentionSpace& space) {
  for (std::int64_t i = 0; i < queries; ++i) {
    convert_row(rows + tokens[i] * columns + head * work.width, work.width,
                space.queries.data() + i * space.width_columns);
  }
  const std::int64_t before = position - first;
  const std::int64_t keys = before + tokens[queries - 1] + 1;
  const std::int64_t key_columns = round_up(keys, kLanes);
  const std::int64_t begin = round_down(first_seen(work, before + tokens[0]), kLanes);
  product(space.queries.data(), space.width_columns, space.keys.data() + begin, space.token_columns, work.width,
          key_columns - begin, space.scores.data() + begin, space.token_columns);
  float sums[kTileRows];
  for (std::int64_t i = 0; i < queries; ++i) {
    float* scores = space.scores.data() + i * space.token_columns;
    const std::int64_t at = before + tokens[i];
    const std::int64_t from = first_seen(work, at);
    if (work.cap != 0.0f) cap_scores(scores, from, at + 1, work.scale, work.cap);
    sums[i] = exponentials(scores, begin, from, at + 1, key_columns, work.cap != 0.0f ? 1.0f : work.scale);
  }
  product(space.scores.data() + begin, space.token_columns, space.values.data() + begin * space.width_columns,
          space.width_columns, keys - begin, space.width_columns, space.out.data(), space.width_columns);
  for (std::int64_t i = 0; i < queries; ++i) {
    const float* sum = space.out.data() + i * space.width_columns;
    T* to = out + i * work.heads * work.width + head * work.width;
    for (std::int64_t j = 0; j < work.width; j += kLanes) {
      const int n = lanes_left(j, work.width);
      write(to + j, n, read(sum + j, n) / sums[i]);
    }
  }
}

// Each run of rows at consecutive positions writes its keys and values at these positions. Since trees are written
// depth first, the space then holds at every position just what the run's rows see.
template <typename T>
LAYERCOOP_TARGET void attention(const Attention<T>& work, std::int64_t begin, std::int64_t end) {
  AttentionSpace space(work.depth, work.width);
  const std::int64_t columns = (work.heads + 2 * work.kv_heads) * work.width;
  const std::int64_t out_columns = work.heads * work.width;
  const std::int64_t group = work.heads / work.kv_heads;
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t window = item / work.kv_heads;
    const std::int64_t kv_head = item % work.kv_heads;
    const std::int64_t row = window * work.tokens;
    const std::int64_t* positions = work.positions == nullptr ? nullptr : work.positions + row % work.pattern;
    std::int64_t asked = 0;
    for (std::int64_t first = 0, last = 0; first < work.tokens && asked < work.n_asked; first = last) {
      last = positions == nullptr ? work.tokens : first + 1;
      while (last < work.tokens && positions[last] == positions[last - 1] + 1) ++last;
      const std::int64_t position = positions == nullptr ? 0 : positions[first];
      load_keys_and_values(work, work.qkv + (row + first) * columns, last - first, position, columns, kv_head, space);
      const std::int64_t begun = asked;
      while (asked < work.n_asked && work.asked[asked] < last) ++asked;
      for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (std::int64_t at = begun; at < asked; at += kTileRows) {
          attend(work, work.qkv + row * columns, work.asked + at, std::min(kTileRows, asked - at), first, position,
                 columns, work.out + (window * work.n_asked + at) * out_columns, head, space);
        }
      }
    }
  }
}

// Scales the running sum to a new largest logit, and returns the factor.
inline float rescale(Running& running, float tile_largest) {
  const float before = running.largest;
  running.largest = std::max(before, tile_largest);
  const float factor = std::exp(before - running.largest);
  running.sum *= factor;
  return factor;
}

LAYERCOOP_INLINE float sum_exponentials(const float* z, std::int64_t columns, float shift) {
  Floats16 sum = 0.0f;
  for (std::int64_t j = 0; j < columns; j += kLanes) {
    sum = sum + select_first(lanes_left(j, columns), exp_of_term(Floats16::load(z + j) - shift), 0.0f);
  }
  return total(sum);
}

template <typename T>
LAYERCOOP_TARGET void loss(const Loss<T>& work, std::int64_t begin, std::int64_t end) {
  const auto padded = static_cast<std::size_t>(round_up(work.columns, kLanes));
  std::vector<float> student(padded);
  std::vector<float> teacher(work.teacher != nullptr ? padded : 0);
  for (std::int64_t row = begin; row < end; ++row) {
    Running& running = work.running[row];
    rescale(running,
            scaled_logits(work.logits + row * work.columns, work.columns, work.scale, work.cap, student.data()));
    running.sum += sum_exponentials(student.data(), work.columns, running.largest);
    const std::int64_t target = work.targets[row];
    if (target >= work.first_token && target - work.first_token < work.columns) {
      running.target = student[static_cast<std::size_t>(target - work.first_token)];
    }
    if (work.teacher == nullptr) continue;

    Running& other = work.teacher_running[row];
    other.target *= rescale(
        other, scaled_logits(work.teacher + row * work.columns, work.columns, work.scale, work.cap, teacher.data()));
    Floats16 sum = 0.0f;
    Floats16 difference = 0.0f;
    for (std::int64_t j = 0; j < work.columns; j += kLanes) {
      const int n = lanes_left(j, work.columns);
      const Floats16 t = Floats16::load(teacher.data() + j);
      const Floats16 e = select_first(n, exp_of_term(t - other.largest), 0.0f);
      sum = sum + e;
      difference = fma(e, select_first(n, t - Floats16::load(student.data() + j), 0.0f), difference);
    }
    other.sum += total(sum);
    other.target += total(difference);
  }
}

template <typename T>
constexpr KernelsOf<T> kernels_of() {
  return {rms_norm<T>, rotary<T, T>, rotary<T, float>, gated<T>, attention<T>, loss<T>};
}

}  // namespace
}  // namespace layercoop::blocks
