// The kernels of slope_kernels.h over the vectors that the including file has chosen.
//
// No lambdas here: a lambda does not inherit its function's target attribute.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "blocks/attention_slopes_impl.h"
#include "blocks/logits_impl.h"
#include "blocks/slope_kernels.h"
#include "cpu/aligned.h"
#include "simd/functions.h"

namespace layercoop::blocks {
namespace {

using namespace simd;

template <typename T>
LAYERCOOP_TARGET void gated_slopes(const GatedSlopes<T>& work, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const T* gate = work.gate_up + row * 2 * work.width;
    const T* up = gate + work.width;
    const T* slope = work.slope + row * work.width;
    T* out = work.out + row * 2 * work.width;
    for (std::int64_t j = 0; j < work.width; j += kLanes) {
      const int n = lanes_left(j, work.width);
      const Floats16 g = read(gate + j, n);
      const Floats16 d = read(slope + j, n);
      const Floats16 below = 1.0f + exp(0.0f - g);
      const Floats16 s = 1.0f / below;
      write(out + j, n, d * read(up + j, n) * (s * fma(g, 1.0f - s, 1.0f)));
      write(out + work.width + j, n, d * rounded(g / below, gate));
    }
  }
}

template <typename T>
LAYERCOOP_TARGET void norm_slopes(const NormSlopes<T>& work, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t at = row * work.width;
    const T* x = work.x + at;
    const T* slope = work.slope + at;
    const float factor = inverse_rms(sum_of_squares(x, work.width), work.width, work.eps);
    work.factors[row] = factor;
    Floats16 along = 0.0f;
    for (std::int64_t j = 0; j < work.width; j += kLanes) {
      const int n = lanes_left(j, work.width);
      along = fma(read(work.weight + j, n) * read(slope + j, n), read(x + j, n), along);
    }
    const float pull = factor * factor * factor * (total(along) / static_cast<float>(work.width));
    for (std::int64_t j = 0; j < work.width; j += kLanes) {
      const int n = lanes_left(j, work.width);
      Floats16 found = factor * (read(work.weight + j, n) * read(slope + j, n)) - pull * read(x + j, n);
      if (work.base != nullptr) found = read(work.base + at + j, n) + found;
      write(work.out + at + j, n, found);
    }
  }
}

template <typename T>
LAYERCOOP_TARGET void norm_weight_slopes(const NormWeightSlopes<T>& work, std::int64_t begin, std::int64_t end) {
  constexpr int kVectors = static_cast<int>(kWeightColumns / kLanes);
  for (std::int64_t group = begin; group < end; ++group) {
    const std::int64_t first = group * kWeightColumns;
    Floats16 sums[kVectors] = {};
    for (std::int64_t row = 0; row < work.rows; ++row) {
      const Floats16 factor = work.factors[row];
      for (int k = 0; k < kVectors; ++k) {
        const std::int64_t j = first + k * kLanes;
        if (j >= work.width) break;
        const int n = lanes_left(j, work.width);
        const std::int64_t at = row * work.width + j;
        sums[k] = fma(read(work.slope + at, n) * factor, read(work.x + at, n), sums[k]);
      }
    }
    for (int k = 0; k < kVectors; ++k) {
      const std::int64_t j = first + k * kLanes;
      if (j >= work.width) break;
      write(work.out + j, lanes_left(j, work.width), sums[k]);
    }
  }
}

// A slope for z becomes one for its logit.
LAYERCOOP_INLINE Floats16 before_scaling(Floats16 slope, Floats16 z, float scale, float cap) {
  if (cap != 0.0f) {
    const Floats16 share = z * (1.0f / cap);
    slope = slope * (1.0f - share * share);
  }
  return slope * scale;
}

template <typename T>
LAYERCOOP_TARGET void divergence(const Divergence<T>& work, std::int64_t begin, std::int64_t end) {
  const std::int64_t columns = work.columns;
  const auto padded = static_cast<std::size_t>(round_up(columns, kLanes));
  cpu::Aligned<float> student(padded);
  cpu::Aligned<float> teacher(padded);
  cpu::Aligned<float> terms(padded);
  for (std::int64_t row = begin; row < end; ++row) {
    T* logits = work.logits + row * columns;
    const float most = scaled_logits(logits, columns, work.scale, work.cap, student.data());
    const float other_most =
        scaled_logits(work.teacher + row * columns, columns, work.teacher_scale, work.teacher_cap, teacher.data());
    Floats16 sum = 0.0f;
    Floats16 other_sum = 0.0f;
    Floats16 difference = 0.0f;
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const int n = lanes_left(j, columns);
      const Floats16 z = Floats16::load(student.data() + j);
      const Floats16 t = Floats16::load(teacher.data() + j);
      const Floats16 e = select_first(n, exp_of_term(z - most), 0.0f);
      const Floats16 other = select_first(n, exp_of_term(t - other_most), 0.0f);
      store(terms.data() + j, e);
      store(teacher.data() + j, other);
      sum = sum + e;
      other_sum = other_sum + other;
      difference = fma(other, select_first(n, t - z, 0.0f), difference);
    }
    const float all = total(sum);
    const float other_all = total(other_sum);
    work.values[row] = total(difference) / other_all + ((most - other_most) + (std::log(all) - std::log(other_all)));
    const float share = 1.0f / all;
    const float other_share = 1.0f / other_all;
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const int n = lanes_left(j, columns);
      const Floats16 q = Floats16::load(terms.data() + j) * share;
      const Floats16 p = Floats16::load(teacher.data() + j) * other_share;
      write(logits + j, n, before_scaling(q - p, Floats16::load(student.data() + j), work.scale, work.cap));
    }
  }
}

template <typename T>
LAYERCOOP_TARGET void named_divergence(const NamedDivergence<T>& work, std::int64_t begin, std::int64_t end) {
  constexpr float kTiny = std::numeric_limits<float>::min();
  const std::int64_t columns = work.columns;
  const auto padded = static_cast<std::size_t>(round_up(columns, kLanes));
  cpu::Aligned<float> student(padded);
  cpu::Aligned<float> terms(padded);
  std::vector<float> own(static_cast<std::size_t>(work.named));
  for (std::int64_t row = begin; row < end; ++row) {
    T* logits = work.logits + row * columns;
    const std::int64_t* tokens = work.tokens + row * work.named;
    const float* log_probs = work.log_probs + row * work.named;
    const float most = scaled_logits(logits, columns, work.scale, work.cap, student.data());
    // The named ones are taken out, so that the sum over the others is no difference of two sums.
    float all = 0.0f;
    for (std::int64_t k = 0; k < work.named; ++k) {
      own[static_cast<std::size_t>(k)] = student[static_cast<std::size_t>(tokens[k])];
      all += std::exp(own[static_cast<std::size_t>(k)] - most);
    }
    for (std::int64_t k = 0; k < work.named; ++k) student[static_cast<std::size_t>(tokens[k])] = kLowest;
    Floats16 sum = 0.0f;
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const Floats16 e = exp_of_term(Floats16::load(student.data() + j) - most);
      store(terms.data() + j, e);
      sum = sum + select_first(lanes_left(j, columns), e, 0.0f);
    }
    const float left = work.named < columns ? total(sum) : 0.0f;
    all += left;
    const float others = left / all;
    const float log_sum = most + std::log(all);
    const float rest = work.rest[row];
    float value = rest > 0.0f ? rest * (std::log(std::max(kTiny, rest)) - std::log(std::max(kTiny, others))) : 0.0f;
    const float share = others > 0.0f ? (1.0f - rest / std::max(kTiny, others)) / all : 0.0f;
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const Floats16 slope = Floats16::load(terms.data() + j) * share;
      const Floats16 z = Floats16::load(student.data() + j);
      write(logits + j, lanes_left(j, columns), before_scaling(slope, z, work.scale, work.cap));
    }
    for (std::int64_t k = 0; k < work.named; ++k) {
      const float z = own[static_cast<std::size_t>(k)];
      const float p = std::exp(log_probs[k]);
      value += p * (log_probs[k] - z + log_sum);
      write(logits + tokens[k], 1, before_scaling(std::exp(z - most) / all - p, z, work.scale, work.cap));
    }
    work.values[row] = value;
  }
}

template <typename T>
LAYERCOOP_TARGET void adamw(const AdamW<T>& work, std::int64_t begin, std::int64_t end) {
  const float inverse_root = 1.0f / work.root;
  for (std::int64_t j = begin; j < end; j += kLanes) {
    const int n = lanes_left(j, end);
    const Floats16 g = read(work.gradient + j, n) * work.factor;
    const Floats16 before = read(work.first + j, n);
    const Floats16 m = fma(g - before, work.rest1, before);
    const Floats16 v = fma(g * g, work.rest2, read(work.second + j, n) * work.beta2);
    const Floats16 value = read(work.value + j, n) - work.rate * m / fma(sqrt(v), inverse_root, work.eps);
    write(work.first + j, n, m);
    write(work.second + j, n, v);
    write(work.value + j, n, value);
    if (work.weight != nullptr) write(work.weight + j, n, value);
  }
}

template <typename T>
LAYERCOOP_TARGET void squares(const SumsOfSquares<T>& work, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t first = i * kSquaresAtOnce;
    work.sums[i] = sum_of_squares(work.x + first, std::min(kSquaresAtOnce, work.n - first));
  }
}

template <typename T>
constexpr SlopeKernelsOf<T> slope_kernels_of() {
  return {
      gated_slopes<T>, norm_slopes<T>, norm_weight_slopes<T>, attention_slopes<T>, divergence<T>, named_divergence<T>,
      adamw<T>,        squares<T>};
}

}  // namespace
}  // namespace layercoop::blocks
