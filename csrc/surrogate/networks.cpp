#include "surrogate/networks.h"

#include <algorithm>
#include <cmath>

namespace layercoop::surrogate {
namespace {

constexpr double kSafePart = 40;
constexpr double kSafeScale = 1e15;

// Whether start + Σ over any of the `n` columns stays within ±kSafePart.
bool stays_safe(const float* columns, int n, double start) {
  double low = start;
  double high = start;
  for (int i = 0; i < n; ++i) (columns[i] < 0 ? low : high) += columns[i];
  return low >= -kSafePart && high <= kSafePart;
}

bool is_fast(const Networks& networks, const float* weight, float bias, float v, int n_low) {
  const double size = std::abs(static_cast<double>(v));
  return networks.activation == Activation::celu && size <= kSafeScale && size >= 1 / kSafeScale &&
         stays_safe(weight, n_low, 0) && stays_safe(weight + n_low, networks.n_players - n_low, bias);
}

}  // namespace

double largest_value(const Networks& networks) {
  double largest = 0;
  const float* column = networks.hidden_weight;
  for (std::int64_t e = 0; e < networks.n_networks; ++e) {
    double value = std::abs(static_cast<double>(networks.output_bias[e]));
    for (std::int64_t unit = e * networks.n_hidden; unit < (e + 1) * networks.n_hidden; ++unit) {
      double x = 1 + std::abs(static_cast<double>(networks.hidden_bias[unit]));
      for (int i = 0; i < networks.n_players; ++i) x += std::abs(static_cast<double>(*column++));
      value += std::abs(static_cast<double>(networks.output_weight[unit])) * x;
      largest = std::max(largest, x);
    }
    largest = std::max(largest, value);
  }
  return largest;
}

SplitNetwork split_network(const Networks& networks, int e, int n_low) {
  const int n = networks.n_players;
  const float* const weights = networks.hidden_weight + std::int64_t{e} * networks.n_hidden * n;
  const float* const biases = networks.hidden_bias + std::int64_t{e} * networks.n_hidden;
  const float* const outputs = networks.output_weight + std::int64_t{e} * networks.n_hidden;

  std::vector<int> negative, positive, plain;
  for (int h = 0; h < networks.n_hidden; ++h) {
    if (outputs[h] == 0) continue;
    const bool fast = is_fast(networks, weights + std::int64_t{h} * n, biases[h], outputs[h], n_low);
    (!fast ? plain : outputs[h] < 0 ? negative : positive).push_back(h);
  }

  SplitNetwork split;
  split.n_negative = static_cast<int>(negative.size());
  split.n_fast = split.n_negative + static_cast<int>(positive.size());
  std::vector<int> order = negative;
  order.insert(order.end(), positive.begin(), positive.end());
  order.insert(order.end(), plain.begin(), plain.end());
  split.n_units = static_cast<int>(order.size());

  double constant = networks.output_bias[e];
  for (int unit = 0; unit < split.n_units; ++unit) {
    const int h = order[static_cast<std::size_t>(unit)];
    const bool fast = unit < split.n_fast;
    split.scale.push_back(fast ? std::abs(outputs[h]) : outputs[h]);
    split.bias.push_back(biases[h]);
    split.weight.insert(split.weight.end(), weights + std::int64_t{h} * n, weights + std::int64_t{h + 1} * n);
    if (fast) constant -= outputs[h];
  }
  split.constant = static_cast<float>(constant);
  return split;
}

void SplitNetwork::part(std::uint64_t mask, int begin, int end, double* linear, double* factor) const {
  const std::size_t n = n_units == 0 ? 0 : weight.size() / static_cast<std::size_t>(n_units);
  for (int unit = 0; unit < n_units; ++unit) {
    const double* const columns = weight.data() + static_cast<std::size_t>(unit) * n;
    double x = 0;
    for (int i = begin; i < end && i < static_cast<int>(n); ++i) {
      if ((mask >> (i - begin)) & 1) x += columns[i];
    }
    const bool fast = unit < n_fast;
    linear[unit] = fast ? scale[static_cast<std::size_t>(unit)] * x : x;
    if (fast) factor[unit] = std::exp(x);
  }
}

void SplitNetwork::offset(double* linear, double* factor) const {
  for (int unit = 0; unit < n_units; ++unit) {
    const auto at = static_cast<std::size_t>(unit);
    const bool fast = unit < n_fast;
    linear[unit] = fast ? scale[at] * (bias[at] + 1) : bias[at];
    if (fast) factor[unit] = scale[at] * std::exp(bias[at]);
  }
}

}  // namespace layercoop::surrogate
