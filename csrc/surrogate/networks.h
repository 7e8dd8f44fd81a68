// Networks as the kernels see them. f_e(m) = out(v_e · act(W_e m + b_e) + c_e); the value of an ensemble is the mean
// over e.
#pragma once

#include <cstdint>
#include <vector>

#include "surrogate/network_kernels.h"

namespace layercoop::surrogate {

// Arrays that the caller owns.
struct Networks {
  const float* hidden_weight;  // W [E, H, n]
  const float* hidden_bias;    // b [E, H]
  const float* output_weight;  // v [E, H]
  const float* output_bias;    // c [E]
  int n_networks;
  int n_hidden;
  int n_players;
  Activation activation;
  bool sigmoid;  // out is σ, else the identity
};

// Networks whose `largest_value` is beyond this are refused: sums and products of their parts could overflow.
constexpr double kLargestValue = 1e30;

// A bound on every intermediate magnitude: max over e of |c| + Σ |v|·(1 + |b| + Σ |W|), and of the bracket alone.
double largest_value(const Networks& networks);

// One network with its hidden units in the order of `Tile`, in double, with |v| folded in where a unit is fast.
struct SplitNetwork {
  int n_negative = 0;
  int n_fast = 0;
  int n_units = 0;
  float constant = 0;
  std::vector<float> scale;    // [n_units]
  std::vector<double> bias;    // [n_units] b
  std::vector<double> weight;  // [n_units, n] W

  // For fast units, |v|·(x + 1) and |v|·e^x are split over the parts of a mask. This is the share of the players in
  // [begin, end) that `mask` keeps (bit 0 = player `begin`): linear [n_units] is the sum of their columns, times |v|
  // for fast units, and factor [n_fast] its exponential without the |v|.
  void part(std::uint64_t mask, int begin, int end, double* linear, double* factor) const;

  // The share that does not depend on the mask: |v|·(b + 1) and |v|·e^b for fast units, b for plain ones.
  void offset(double* linear, double* factor) const;
};

// Network e, its pre-activations split into players [0, n_low) and the rest. A CELU unit is fast where neither part can
// leave ±40 and |v| lies in 1e-15..1e15, so that no factor and no product of two overflows or turns into 0·∞.
SplitNetwork split_network(const Networks& networks, int e, int n_low);

}  // namespace layercoop::surrogate
