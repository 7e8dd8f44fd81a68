// Prediction and flips for one instruction set; see kernels_impl.h for the rules.
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

// x of kAtOnce vectors of units, side by side: their sums do not wait for each other.
template <int kAtOnce>
LAYERCOOP_INLINE void pre_activations(const FlatTile& tile, const Rows& rows, int unit, V (&x)[kAtOnce]) {
#pragma GCC unroll 4
  for (int v = 0; v < kAtOnce; ++v) x[v] = V::load(tile.bias + unit + v * V::kLanes);
  for (int nibble = 0; nibble < tile.n_nibbles; ++nibble) {
    const float* const row = rows.row[nibble] + unit;
#pragma GCC unroll 4
    for (int v = 0; v < kAtOnce; ++v) x[v] = x[v] + V::load(row + v * V::kLanes);
  }
}

template <Activation A, int kAtOnce>
LAYERCOOP_INLINE void add_units(const FlatTile& tile, const Rows& rows, int unit, V& acc) {
  V x[kAtOnce];
  pre_activations(tile, rows, unit, x);
#pragma GCC unroll 4
  for (int v = 0; v < kAtOnce; ++v) {
    acc = fma(V::load(tile.output + unit + v * V::kLanes), activate<A>(x[v]), acc);
  }
}

template <Activation A>
LAYERCOOP_TARGET void predict_as(const FlatTile& tile, const std::uint64_t* masks, std::int64_t count, int n_words,
                                 float* logits) {
  for (std::int64_t row = 0; row < count; ++row) {
    const Rows rows(tile, masks + row * n_words);
    V acc = V::fill(0.0f);
    int unit = 0;
    for (; unit + 4 * V::kLanes <= tile.n_units; unit += 4 * V::kLanes) add_units<A, 4>(tile, rows, unit, acc);
    for (; unit < tile.n_units; unit += V::kLanes) add_units<A, 1>(tile, rows, unit, acc);
    logits[row] = tile.constant + sum(acc);
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

// Where in `columns` and `factors` the flips of players [player, player + kFlips) stand for this mask.
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
                                const std::int64_t (&offsets)[kFlips], int begin, int end, V (&acc)[kFlips]) {
  for (int unit = begin; unit < end; unit += V::kLanes) {
    const V line = V::load(linear + unit);
    const V factor = V::load(curve + unit);
    const V scale = V::load(tile.scale + unit);
#pragma GCC unroll 8
    for (int f = 0; f < kFlips; ++f) {
      const V moved = line + V::load(tile.columns + offsets[f] + unit);
      const V term = celu_term(moved, factor, V::load(tile.factors + offsets[f] + unit), scale);
      if constexpr (S == Signs::negative) acc[f] = acc[f] - term;
      if constexpr (S == Signs::mixed) acc[f] = fma(V::load(tile.signs + unit), term, acc[f]);
      if constexpr (S == Signs::positive) acc[f] = acc[f] + term;
    }
  }
}

// |v|·(CELU + 1) from |v|·(x + 1) and |v|·e^x, each moved by the flip: no exponential is taken here.
LAYERCOOP_TARGET void flip_fast(const FlatTile& tile, const std::uint64_t* mask, const float* linear,
                                const float* curve, float* logits) {
  const int negative = tile.n_negative / V::kLanes * V::kLanes;
  const int positive = (tile.n_negative + V::kLanes - 1) / V::kLanes * V::kLanes;
  for (int player = 0; player < tile.n_players; player += kFlips) {
    std::int64_t offsets[kFlips];
    flip_offsets(tile, mask, player, offsets);
    V acc[kFlips];
#pragma GCC unroll 8
    for (int f = 0; f < kFlips; ++f) acc[f] = V::fill(0.0f);
    add_flips<Signs::negative>(tile, linear, curve, offsets, 0, negative, acc);
    add_flips<Signs::mixed>(tile, linear, curve, offsets, negative, positive, acc);
    add_flips<Signs::positive>(tile, linear, curve, offsets, positive, tile.n_units, acc);
    sum4(acc[0], acc[1], acc[2], acc[3], tile.fast_constant, logits + player);
    sum4(acc[4], acc[5], acc[6], acc[7], tile.fast_constant, logits + player + 4);
  }
}

template <Activation A>
LAYERCOOP_TARGET void flip_plain(const FlatTile& tile, const std::uint64_t* mask, const float* x, float* logits) {
  for (int player = 0; player < tile.n_players; player += kFlips) {
    std::int64_t offsets[kFlips];
    flip_offsets(tile, mask, player, offsets);
    V acc[kFlips];
#pragma GCC unroll 8
    for (int f = 0; f < kFlips; ++f) acc[f] = V::fill(0.0f);
    for (int unit = 0; unit < tile.n_units; unit += V::kLanes) {
      const V base = V::load(x + unit);
      const V output = V::load(tile.output + unit);
#pragma GCC unroll 8
      for (int f = 0; f < kFlips; ++f) {
        acc[f] = fma(output, activate<A>(base + V::load(tile.plain_columns + offsets[f] + unit)), acc[f]);
      }
    }
    sum4(acc[0], acc[1], acc[2], acc[3], tile.constant, logits + player);
    sum4(acc[4], acc[5], acc[6], acc[7], tile.constant, logits + player + 4);
  }
}

template <Activation A>
LAYERCOOP_TARGET float flip_as(const FlatTile& tile, const std::uint64_t* mask, float* scratch, float* logits) {
  const Rows rows(tile, mask);
  V acc = V::fill(0.0f);
  for (int unit = 0; unit < tile.n_units; unit += V::kLanes) {
    V x[1];
    pre_activations(tile, rows, unit, x);
    acc = fma(V::load(tile.output + unit), activate<A>(x[0]), acc);
    x[0].store(scratch + unit);
  }
  flip_plain<A>(tile, mask, scratch, logits);
  return tile.constant + sum(acc);
}

// CELU with tables of factors: as flip_as, by flip_fast where the pre-activations of this mask are in its range too.
LAYERCOOP_TARGET float flip_celu(const FlatTile& tile, const std::uint64_t* mask, float* scratch, float* logits) {
  const Rows rows(tile, mask);
  const V zero = V::fill(0.0f);
  const V one = V::fill(1.0f);
  float* const curves = scratch + tile.n_units;
  V acc = zero;
  V largest = zero;
  for (int unit = 0; unit < tile.n_units; unit += V::kLanes) {
    V moved[1];
    pre_activations(tile, rows, unit, moved);
    const V x = moved[0];
    const V scale = V::load(tile.scale + unit);
    const V linear = fma(scale, x, scale);
    const V curve = scale * exp(x);
    largest = max(largest, max(x, zero - x));
    acc = fma(V::load(tile.signs + unit), celu_term(linear, curve, one, scale), acc);
    linear.store(scratch + unit);
    curve.store(curves + unit);
  }
  if (any_at_least(largest, V::fill(kSafe))) return flip_as<Activation::celu>(tile, mask, scratch, logits);
  flip_fast(tile, mask, scratch, curves, logits);
  return tile.fast_constant + sum(acc);
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
  const V side = V::fill(is_sigmoid && base > 0 ? -1.0f : 1.0f);
  const V value = is_sigmoid ? sigmoid(side * V::fill(base)) : V::fill(base);
  for (int i = 0; i < count; i += V::kLanes) {
    const V logit = side * V::load(logits + i);
    const V moved = is_sigmoid ? sigmoid(logit) : logit;
    fma(side, moved - value, V::load(changes + i)).store(changes + i);
  }
}

LAYERCOOP_TARGET void add_moments(const float* changes, const float* signs, int count, float* sums, float* squares) {
  for (int i = 0; i < count; i += V::kLanes) {
    const V change = V::load(changes + i);
    fma(V::load(signs + i), change, V::load(sums + i)).store(sums + i);
    fma(change, change, V::load(squares + i)).store(squares + i);
  }
}

}  // namespace
}  // namespace layercoop::surrogate
