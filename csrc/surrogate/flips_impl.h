// Prediction and flips; a part of network_kernels_impl.h.
#pragma once

#include <cstdint>

#include "masks.h"
#include "surrogate/activations_impl.h"
#include "surrogate/network_kernels.h"

namespace layercoop::surrogate {
namespace {

constexpr float kSafe = 40.0f;  // e^x, e^±W_i and their products are finite and not 0 within ±40

constexpr int kMaxNibbles = kMaxPlayers / kNibble;

// The rows of `nibbles` that a packed mask selects.
struct Rows {
  const float* row[kMaxNibbles];

  Rows(const FlatTile& tile, const std::uint64_t* mask) {
    const float* table = tile.nibbles;
    const std::int64_t step = std::int64_t{16} * tile.n_units;
    std::uint64_t bits = 0;
    for (int nibble = 0; nibble < tile.n_nibbles; ++nibble, table += step, bits >>= kNibble) {
      if (nibble % 16 == 0) bits = *mask++;
      row[nibble] = table + static_cast<std::int64_t>(bits & 15) * tile.n_units;
    }
  }
};

// x of kAtOnce vectors of units together: their sums do not wait for each other.
template <int kAtOnce>
LAYERCOOP_INLINE void pre_activations(const FlatTile& tile, const Rows& rows, int unit, Floats (&x)[kAtOnce]) {
#pragma GCC unroll 4
  for (int v = 0; v < kAtOnce; ++v) x[v] = Floats::load(tile.bias + unit + v * Floats::kLanes);
  for (int nibble = 0; nibble < tile.n_nibbles; ++nibble) {
    const float* const row = rows.row[nibble] + unit;
#pragma GCC unroll 4
    for (int v = 0; v < kAtOnce; ++v) x[v] = x[v] + Floats::load(row + v * Floats::kLanes);
  }
}

template <Activation A, int kAtOnce>
LAYERCOOP_INLINE void add_units(const FlatTile& tile, const Rows& rows, int unit, Floats& acc) {
  Floats x[kAtOnce];
  pre_activations(tile, rows, unit, x);
#pragma GCC unroll 4
  for (int v = 0; v < kAtOnce; ++v) {
    acc = fma(Floats::load(tile.output + unit + v * Floats::kLanes), activate<A>(x[v]), acc);
  }
}

template <Activation A>
LAYERCOOP_TARGET void predict_as(const FlatTile& tile, const std::uint64_t* masks, std::int64_t count, int n_words,
                                 float* logits) {
  for (std::int64_t row = 0; row < count; ++row) {
    const Rows rows(tile, masks + row * n_words);
    Floats acc = 0.0f;
    int unit = 0;
    for (; unit + 4 * Floats::kLanes <= tile.n_units; unit += 4 * Floats::kLanes)
      add_units<A, 4>(tile, rows, unit, acc);
    for (; unit < tile.n_units; unit += Floats::kLanes) add_units<A, 1>(tile, rows, unit, acc);
    logits[row] = tile.constant + total(acc);
  }
}

void predict(const FlatTile& tile, const std::uint64_t* masks, std::int64_t count, int n_words, float* logits) {
  switch (tile.activation) {
    case Activation::celu: return predict_as<Activation::celu>(tile, masks, count, n_words, logits);
    case Activation::relu: return predict_as<Activation::relu>(tile, masks, count, n_words, logits);
    case Activation::gelu: return predict_as<Activation::gelu>(tile, masks, count, n_words, logits);
    case Activation::tanh: return predict_as<Activation::tanh>(tile, masks, count, n_words, logits);
  }
}

// Where `columns` and `factors` hold the flips of players [player, player + kFlips) of this mask.
LAYERCOOP_INLINE void flip_offsets(const FlatTile& tile, const std::uint64_t* mask, int player,
                                   std::int64_t (&offsets)[kFlips]) {
  const std::int64_t kept_row = std::int64_t{tile.n_rows} * tile.n_units;
  const std::uint64_t bits = mask[player / 64] >> (player % 64);
#pragma GCC unroll 8
  for (int f = 0; f < kFlips; ++f) {
    offsets[f] = (player + f) * tile.n_units + static_cast<std::int64_t>(bits >> f & 1) * kept_row;
  }
}

// What a vector of units adds to the sum: all of negative v, all of positive v, or some of each.
enum class Signs { negative, mixed, positive };

template <Signs S>
LAYERCOOP_INLINE void add_flips(const FlatTile& tile, const float* linear, const float* curve,
                                const std::int64_t (&offsets)[kFlips], int begin, int end, Floats (&acc)[kFlips]) {
  for (int unit = begin; unit < end; unit += Floats::kLanes) {
    const Floats line = Floats::load(linear + unit);
    const Floats factor = Floats::load(curve + unit);
    const Floats scale = Floats::load(tile.scale + unit);
#pragma GCC unroll 8
    for (int f = 0; f < kFlips; ++f) {
      const Floats moved = line + Floats::load(tile.columns + offsets[f] + unit);
      const Floats term = celu_term(moved, factor, Floats::load(tile.factors + offsets[f] + unit), scale);
      if constexpr (S == Signs::negative) acc[f] = acc[f] - term;
      if constexpr (S == Signs::mixed) acc[f] = fma(Floats::load(tile.signs + unit), term, acc[f]);
      if constexpr (S == Signs::positive) acc[f] = acc[f] + term;
    }
  }
}

// |v|·(CELU + 1) from |v|·(x + 1) and |v|·e^x, each moved by the flip: no exponential is taken here.
LAYERCOOP_TARGET void flip_fast(const FlatTile& tile, const std::uint64_t* mask, const float* linear,
                                const float* curve, float* logits) {
  const int negative = tile.n_negative / Floats::kLanes * Floats::kLanes;
  const int positive = (tile.n_negative + Floats::kLanes - 1) / Floats::kLanes * Floats::kLanes;
  for (int player = 0; player < tile.n_players; player += kFlips) {
    std::int64_t offsets[kFlips];
    flip_offsets(tile, mask, player, offsets);
    Floats acc[kFlips] = {};
    add_flips<Signs::negative>(tile, linear, curve, offsets, 0, negative, acc);
    add_flips<Signs::mixed>(tile, linear, curve, offsets, negative, positive, acc);
    add_flips<Signs::positive>(tile, linear, curve, offsets, positive, tile.n_units, acc);
    total4(acc[0], acc[1], acc[2], acc[3], tile.fast_constant, logits + player);
    total4(acc[4], acc[5], acc[6], acc[7], tile.fast_constant, logits + player + 4);
  }
}

template <Activation A>
LAYERCOOP_TARGET void flip_plain(const FlatTile& tile, const std::uint64_t* mask, const float* x, float* logits) {
  for (int player = 0; player < tile.n_players; player += kFlips) {
    std::int64_t offsets[kFlips];
    flip_offsets(tile, mask, player, offsets);
    Floats acc[kFlips] = {};
    for (int unit = 0; unit < tile.n_units; unit += Floats::kLanes) {
      const Floats base = Floats::load(x + unit);
      const Floats output = Floats::load(tile.output + unit);
#pragma GCC unroll 8
      for (int f = 0; f < kFlips; ++f) {
        acc[f] = fma(output, activate<A>(base + Floats::load(tile.plain_columns + offsets[f] + unit)), acc[f]);
      }
    }
    total4(acc[0], acc[1], acc[2], acc[3], tile.constant, logits + player);
    total4(acc[4], acc[5], acc[6], acc[7], tile.constant, logits + player + 4);
  }
}

template <Activation A>
LAYERCOOP_TARGET float flip_as(const FlatTile& tile, const std::uint64_t* mask, float* scratch, float* logits) {
  const Rows rows(tile, mask);
  Floats acc = 0.0f;
  for (int unit = 0; unit < tile.n_units; unit += Floats::kLanes) {
    Floats x[1];
    pre_activations(tile, rows, unit, x);
    acc = fma(Floats::load(tile.output + unit), activate<A>(x[0]), acc);
    store(scratch + unit, x[0]);
  }
  flip_plain<A>(tile, mask, scratch, logits);
  return tile.constant + total(acc);
}

// flip_as for CELU with tables of factors: by flip_fast if the pre-activations of this mask are in its range.
LAYERCOOP_TARGET float flip_celu(const FlatTile& tile, const std::uint64_t* mask, float* scratch, float* logits) {
  const Rows rows(tile, mask);
  const Floats zero = 0.0f;
  const Floats one = 1.0f;
  float* const curves = scratch + tile.n_units;
  Floats acc = zero;
  Floats largest = zero;
  for (int unit = 0; unit < tile.n_units; unit += Floats::kLanes) {
    Floats moved[1];
    pre_activations(tile, rows, unit, moved);
    const Floats x = moved[0];
    const Floats scale = Floats::load(tile.scale + unit);
    const Floats linear = fma(scale, x, scale);
    const Floats curve = scale * exp(x);
    largest = max(largest, max(x, zero - x));
    acc = fma(Floats::load(tile.signs + unit), celu_term(linear, curve, one, scale), acc);
    store(scratch + unit, linear);
    store(curves + unit, curve);
  }
  if (any_at_least(largest, kSafe)) return flip_as<Activation::celu>(tile, mask, scratch, logits);
  flip_fast(tile, mask, scratch, curves, logits);
  return tile.fast_constant + total(acc);
}

float flip(const FlatTile& tile, const std::uint64_t* mask, float* scratch, float* logits) {
  switch (tile.activation) {
    case Activation::relu: return flip_as<Activation::relu>(tile, mask, scratch, logits);
    case Activation::gelu: return flip_as<Activation::gelu>(tile, mask, scratch, logits);
    case Activation::tanh: return flip_as<Activation::tanh>(tile, mask, scratch, logits);
    case Activation::celu: break;
  }
  if (tile.factors == nullptr) return flip_as<Activation::celu>(tile, mask, scratch, logits);
  return flip_celu(tile, mask, scratch, logits);
}

LAYERCOOP_TARGET void add_changes(float base, const float* logits, int count, bool is_sigmoid, float* changes) {
  // σ(z) = 1 − σ(−z): take the side where σ is small.
  const Floats side = is_sigmoid && base > 0 ? -1.0f : 1.0f;
  const Floats value = is_sigmoid ? sigmoid(side * base) : base;
  for (int i = 0; i < count; i += Floats::kLanes) {
    const Floats logit = side * Floats::load(logits + i);
    const Floats moved = is_sigmoid ? sigmoid(logit) : logit;
    store(changes + i, fma(side, moved - value, Floats::load(changes + i)));
  }
}

LAYERCOOP_TARGET void add_moments(const float* changes, const float* signs, int count, float* sums, float* squares) {
  for (int i = 0; i < count; i += Floats::kLanes) {
    const Floats change = Floats::load(changes + i);
    store(sums + i, fma(Floats::load(signs + i), change, Floats::load(sums + i)));
    store(squares + i, fma(change, change, Floats::load(squares + i)));
  }
}

}  // namespace
}  // namespace layercoop::surrogate
