// The kernels of network_kernels.h over the vectors of floats that the including file has chosen.
#pragma once

#include <cstdint>

#include "surrogate/activations_impl.h"
#include "surrogate/flips_impl.h"
#include "surrogate/network_kernels.h"

namespace layercoop::surrogate {
namespace {

// High masks and vectors of low masks whose sums stay in registers together.
constexpr int kHigh = Floats::kRegisters == 32 ? 8 : 4;
constexpr int kVectors = 2;
static_assert(kGroup % kHigh == 0 && kBlock % (kVectors * Floats::kLanes) == 0, "the register tile divides the block");

struct Accumulators {
  Floats sum[kVectors][kHigh];
};

LAYERCOOP_INLINE void add_fast_units(const Tile& tile, int begin, int end, const float* high_linear,
                                     const float* high_factor, int lane, Accumulators& acc) {
  for (int unit = begin; unit < end; ++unit) {
    const Floats scale = tile.scale[unit];
    Floats linear[kVectors];
    Floats factor[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      linear[v] = Floats::load(tile.low_linear + unit * kBlock + lane + v * Floats::kLanes);
      factor[v] = Floats::load(tile.low_factor + unit * kBlock + lane + v * Floats::kLanes);
    }
#pragma GCC unroll 8
    for (int k = 0; k < kHigh; ++k) {
      const Floats a = high_linear[unit * kGroup + k];
      const Floats e = high_factor[unit * kGroup + k];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        acc.sum[v][k] = acc.sum[v][k] + celu_term(linear[v] + a, factor[v], e, scale);
      }
    }
  }
}

template <Activation A>
LAYERCOOP_INLINE void add_plain_units(const Tile& tile, const float* high_linear, int lane, Accumulators& acc) {
  for (int unit = tile.n_fast; unit < tile.n_units; ++unit) {
    const Floats scale = tile.scale[unit];
    for (int v = 0; v < kVectors; ++v) {
      const Floats low = Floats::load(tile.low_linear + unit * kBlock + lane + v * Floats::kLanes);
#pragma GCC unroll 8
      for (int k = 0; k < kHigh; ++k) {
        acc.sum[v][k] = fma(scale, activate<A>(low + high_linear[unit * kGroup + k]), acc.sum[v][k]);
      }
    }
  }
}

template <Activation A>
LAYERCOOP_TARGET void evaluate_as(const Tile& tile, float* logits) {
  for (int group = 0; group < tile.n_groups; ++group) {
    for (int k0 = 0; k0 < kGroup; k0 += kHigh) {
      const float* const high_linear = tile.high_linear + group * tile.n_units * kGroup + k0;
      const float* const high_factor = tile.high_factor + group * tile.n_fast * kGroup + k0;
      for (int lane = 0; lane < kBlock; lane += kVectors * Floats::kLanes) {
        Accumulators acc = {};
        add_fast_units(tile, 0, tile.n_negative, high_linear, high_factor, lane, acc);
        const Floats constant = tile.constant;
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
          for (int k = 0; k < kHigh; ++k) acc.sum[v][k] = constant - acc.sum[v][k];
        }
        add_fast_units(tile, tile.n_negative, tile.n_fast, high_linear, high_factor, lane, acc);
        if (tile.n_fast < tile.n_units) add_plain_units<A>(tile, high_linear, lane, acc);
        float* const out = logits + (group * kGroup + k0) * kBlock + lane;
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
          for (int k = 0; k < kHigh; ++k) store(out + k * kBlock + v * Floats::kLanes, acc.sum[v][k]);
        }
      }
    }
  }
}

void evaluate(const Tile& tile, float* logits) {
  switch (tile.activation) {
    case Activation::celu: return evaluate_as<Activation::celu>(tile, logits);
    case Activation::relu: return evaluate_as<Activation::relu>(tile, logits);
    case Activation::gelu: return evaluate_as<Activation::gelu>(tile, logits);
    case Activation::tanh: return evaluate_as<Activation::tanh>(tile, logits);
  }
}

LAYERCOOP_TARGET void add_sigmoid(const float* logits, std::int64_t count, float side, float* values) {
  const Floats sign = side;
  for (std::int64_t i = 0; i < count; i += Floats::kLanes) {
    store(values + i, fma(sign, sigmoid(sign * Floats::load(logits + i)), Floats::load(values + i)));
  }
}

LAYERCOOP_TARGET void add(const float* logits, std::int64_t count, float* values) {
  for (std::int64_t i = 0; i < count; i += Floats::kLanes)
    store(values + i, Floats::load(values + i) + Floats::load(logits + i));
}

LAYERCOOP_TARGET int gather(const Sums& sums, const float* scores, int n_rows, float* values, int* hits) {
  int n_hits = 0;
  for (int row = 0; row < n_rows; ++row) {
    const int in_class = sums.row_class[row] * kBlock;
    const int in_row = row * kBlock;
    bool hit = false;
    for (int lane = 0; lane < kBlock; lane += Floats::kLanes) {
      const Floats value = Floats::load(values + in_row + lane) - Floats::load(sums.shifts + in_class + lane);
      store(values + in_row + lane, value);
      store(sums.by_row + in_row + lane, Floats::load(sums.by_row + in_row + lane) + value);
      store(sums.by_class + in_class + lane, Floats::load(sums.by_class + in_class + lane) + value);
      store(sums.squares + in_class + lane, fma(value, value, Floats::load(sums.squares + in_class + lane)));
      hit |= any_at_least(Floats::load(scores + in_row + lane), Floats::load(sums.thresholds + in_class + lane));
    }
    hits[n_hits] = row;
    n_hits += hit;
  }
  return n_hits;
}

LAYERCOOP_TARGET int affordable(const float* scores, int n_rows, float best, const float* costs, const float* remaining,
                                int* hits) {
  int n_hits = 0;
  const Floats zero = 0.0f;
  for (int row = 0; row < n_rows; ++row) {
    bool hit = false;
    for (int lane = 0; lane < kBlock; lane += Floats::kLanes) {
      const Floats gain = Floats::load(scores + row * kBlock + lane) - best;
      const Floats rest = remaining[row] - Floats::load(costs + lane);
      hit |= any_at_least(min(gain, rest), zero);
    }
    hits[n_hits] = row;
    n_hits += hit;
  }
  return n_hits;
}

LAYERCOOP_TARGET void add_rows(const float* rows, const std::uint8_t* row_class, int n_rows, int subset, float* sums) {
  for (int row = subset; row < n_rows; row = (row + 1) | subset) {
    float* const sum = sums + row_class[row] * kBlock;
    for (int lane = 0; lane < kBlock; lane += Floats::kLanes) {
      store(sum + lane, Floats::load(sum + lane) + Floats::load(rows + row * kBlock + lane));
    }
  }
}

LAYERCOOP_TARGET void shift_table(const double* base, const double* offsets, int n, float* out) {
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k < kGroup; ++k) out[i * kGroup + k] = static_cast<float>(base[i * kGroup + k] + offsets[i]);
  }
}

LAYERCOOP_TARGET void scale_table(const double* base, const double* factors, int n, float* out) {
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k < kGroup; ++k) out[i * kGroup + k] = static_cast<float>(base[i * kGroup + k] * factors[i]);
  }
}

constexpr NetworkKernels make_network_kernels() {
  return {predict, flip,   add_changes, add_moments, evaluate,    add_sigmoid,
          add,     gather, affordable,  add_rows,    shift_table, scale_table};
}

}  // namespace
}  // namespace layercoop::surrogate
