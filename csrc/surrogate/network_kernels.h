// The table of the inner loops of the surrogate.
//
// CELU is computed without an exponential where that is safe. With x = a + b,
//     CELU(x) + 1 = x > 0 ? x + 1 : e^a·e^b,
// and a, b, e^a, e^b come from tables that hold them for every part of a mask. The output weight v is folded in: tables
// hold |v|·(x + 1) and |v|·e^x, and units of negative v are summed apart. A hidden unit treated so is called *fast*;
// every other unit (other activations, or pre-activations too large for e^a·e^b to stay finite) is *plain*: its tables
// hold x, and the activation is computed.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

namespace layercoop::surrogate {

enum class Activation { celu, relu, gelu, tanh };

constexpr int kBlockPlayers = 5;
constexpr int kBlock = 1 << kBlockPlayers;  // low masks evaluated together, one in each lane
constexpr int kGroup = 8;                   // high masks evaluated together: one after another against the same lanes

// One network for one block of low masks and `n_groups` groups of high masks. The order of units is: fast of
// negative v, fast of positive v, plain. `linear` tables have a row for every unit, `factor` tables for the fast ones.
struct Tile {
  const float* low_linear;   // [n_units, kBlock]
  const float* low_factor;   // [n_fast, kBlock]
  const float* high_linear;  // [n_groups, n_units, kGroup]
  const float* high_factor;  // [n_groups, n_fast, kGroup]
  const float* scale;        // [n_units] |v| of fast units, v of plain ones
  int n_negative;
  int n_fast;
  int n_units;
  int n_groups;
  float constant;  // c − Σ v over the fast units
  Activation activation;
};

// What one block of masks adds to sums.
struct Sums {
  const std::uint8_t* row_class;  // [n_rows] the class of a row
  const float* shifts;            // [classes, kBlock] subtracted from the values
  const float* thresholds;        // [classes, kBlock]
  float* by_row;                  // [n_rows, kBlock] += value
  float* by_class;                // [classes, kBlock] += value
  float* squares;                 // [classes, kBlock] += value²
};

constexpr int kPadding = 16;  // hidden units are padded to a multiple of it
constexpr int kNibble = 4;    // players that select one table row of `FlatTile`
constexpr int kFlips = 8;     // flipped players evaluated together

// One network for masks of any kind: hidden units in the lanes, those of negative v first and unused ones
// (v = 0, and up to a multiple of kPadding) last, where every table holds 0 (factors 1). x is the pre-activation
// W m + b. The tables from `plain_columns` on serve flips: `[2, n_rows, n_units]`, row i of the first half for putting
// player i in, of the second for taking it out.
struct FlatTile {
  const float* nibbles;        // [ceil(n / 4), 16, n_units] Σ of the columns of the players kept in each four bits
  const float* bias;           // [n_units]
  const float* output;         // [n_units] v
  const float* plain_columns;  // what the flip adds to x: W_i, or −W_i
  const float* columns;        // |v| times that
  const float* factors;        // e to the power of what it adds; null where these or their products could overflow
  const float* scale;          // [n_units] |v|
  const float* signs;          // [n_units] of v
  int n_nibbles;
  int n_players;
  int n_rows;  // n padded to kFlips
  int n_negative;
  int n_units;
  float constant;       // c
  float fast_constant;  // c − Σ v
  Activation activation;
};

struct NetworkKernels {
  // logits [count] of packed masks [count, n_words].
  void (*predict)(const FlatTile& tile, const std::uint64_t* masks, std::int64_t count, int n_words, float* logits);

  // The logit of one packed mask, and logits [n_rows] with one player flipped. `scratch` is [2, n_units].
  float (*flip)(const FlatTile& tile, const std::uint64_t* mask, float* scratch, float* logits);

  // changes[i] += f with player i flipped − f without, for f = σ(logit) (or the logit): the difference keeps
  // its digits where σ is close to 1. `count` is a multiple of kPadding.
  void (*add_changes)(float base, const float* logits, int count, bool sigmoid, float* changes);

  // sums += signs · changes and squares += changes².
  void (*add_moments)(const float* changes, const float* signs, int count, float* sums, float* squares);

  // logits [n_groups, kGroup, kBlock] = the network before its output function.
  void (*evaluate)(const Tile& tile, float* logits);

  // values += σ(logits) − (side < 0 ? 1 : 0), or += logits; count is a multiple of kBlock. With side −1 it is −σ(−z),
  // which has digits where σ is close to 1.
  void (*add_sigmoid)(const float* logits, std::int64_t count, float side, float* values);
  void (*add)(const float* logits, std::int64_t count, float* values);

  // Subtracts the shifts from values [n_rows, kBlock] in place, adds them to the sums, and lists in `hits` the rows
  // with a score at or above its threshold. Returns how many.
  int (*gather)(const Sums& sums, const float* scores, int n_rows, float* values, int* hits);

  // Lists the rows with a mask whose score is at least `best` and whose cost is at most remaining[row].
  int (*affordable)(const float* scores, int n_rows, float best, const float* costs, const float* remaining, int* hits);

  // sums[row_class[r]] += rows[r] for every r that contains `subset`; all rows are [kBlock].
  void (*add_rows)(const float* rows, const std::uint8_t* row_class, int n_rows, int subset, float* sums);

  // out[i, k] = base[i, k] + offsets[i], or · factors[i]; base [n, kGroup].
  void (*shift_table)(const double* base, const double* offsets, int n, float* out);
  void (*scale_table)(const double* base, const double* factors, int n, float* out);
};

extern const NetworkKernels kNetworkKernelsPortable, kNetworkKernelsAvx2, kNetworkKernelsAvx512, kNetworkKernelsNeon;

// The table of the instruction set in force.
const NetworkKernels& network_kernels() noexcept;

}  // namespace layercoop::surrogate
