#include "surrogate/flips.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/pool.h"
#include "masks.h"

namespace layercoop::surrogate {
namespace {

using cpu::Aligned;

constexpr double kSafeColumn = 40;  // see kSafe in flips_impl.h
constexpr double kSafeScale = 1e15;
constexpr std::int64_t kMasksPerRange = 256;
constexpr std::int64_t kMaxRanges = 4096;

int rounded_up(int n, int step) { return (n + step - 1) / step * step; }

// Hidden units of negative v, then those of positive v; units of v = 0 add nothing.
std::vector<int> units_of(const float* output, int n_hidden) {
  std::vector<int> units;
  for (const float sign : {-1.0f, 1.0f}) {
    for (int unit = 0; unit < n_hidden; ++unit) {
      if (sign * output[unit] > 0) units.push_back(unit);
    }
  }
  return units;
}

// One network in the layout of `FlatTile`, which points into it.
struct FlatNetwork {
  Aligned<float> nibbles, bias, output, plain_columns, columns, factors, scale, signs;
  FlatTile tile;

  FlatNetwork(const Networks& networks, int e, bool with_flips) {
    const int n = networks.n_players;
    const int n_hidden = networks.n_hidden;
    const float* const weights = networks.hidden_weight + std::int64_t{e} * n_hidden * n;
    const float* const biases = networks.hidden_bias + std::int64_t{e} * n_hidden;
    const float* const outputs = networks.output_weight + std::int64_t{e} * n_hidden;
    const std::vector<int> units = units_of(outputs, n_hidden);
    const int n_units = rounded_up(static_cast<int>(units.size()), kPadding);
    const int n_nibbles = (n + kNibble - 1) / kNibble;
    const int n_rows = rounded_up(n, kFlips);
    const auto width = static_cast<std::size_t>(n_units);

    nibbles.resize(static_cast<std::size_t>(n_nibbles) * 16 * width);
    for (Aligned<float>* row : {&bias, &output, &scale, &signs}) row->resize(width);
    if (with_flips) {
      for (Aligned<float>* table : {&plain_columns, &columns})
        table->resize(2 * static_cast<std::size_t>(n_rows) * width);
      factors.assign(columns.size(), 1.0f);
    }
    int n_negative = 0;
    double fast_constant = networks.output_bias[e];
    bool safe = networks.activation == Activation::celu;
    for (std::size_t at = 0; at < units.size(); ++at) {
      const float* const weight = weights + std::int64_t{units[at]} * n;
      const float v = outputs[units[at]];
      const double size = std::abs(static_cast<double>(v));
      n_negative += v < 0;
      fast_constant -= v;
      safe = safe && size <= kSafeScale && size >= 1 / kSafeScale;
      bias[at] = biases[units[at]];
      output[at] = v;
      scale[at] = std::abs(v);
      signs[at] = v < 0 ? -1.0f : 1.0f;
      for (int row = 0; row < n_nibbles * 16; ++row) {
        double x = 0;
        for (int i = 0; i < kNibble && row / 16 * kNibble + i < n; ++i) {
          if (row >> i & 1) x += weight[row / 16 * kNibble + i];
        }
        nibbles[static_cast<std::size_t>(row) * width + at] = static_cast<float>(x);
      }
      for (int row = 0; with_flips && row < 2 * n; ++row) {
        const double moved = row < n ? weight[row] : -static_cast<double>(weight[row - n]);
        const auto to = static_cast<std::size_t>(row < n ? row : n_rows + row - n) * width + at;
        plain_columns[to] = static_cast<float>(moved);
        columns[to] = static_cast<float>(size * moved);
        factors[to] = static_cast<float>(std::exp(moved));
        safe = safe && std::abs(moved) <= kSafeColumn;
      }
    }
    tile = {nibbles.data(),
            bias.data(),
            output.data(),
            plain_columns.data(),
            columns.data(),
            safe ? factors.data() : nullptr,
            scale.data(),
            signs.data(),
            n_nibbles,
            n,
            n_rows,
            n_negative,
            n_units,
            networks.output_bias[e],
            static_cast<float>(fast_constant),
            networks.activation};
  }
};

std::vector<FlatNetwork> flatten(const Networks& networks, bool with_flips) {
  std::vector<FlatNetwork> flat;
  flat.reserve(static_cast<std::size_t>(networks.n_networks));
  for (int e = 0; e < networks.n_networks; ++e) flat.emplace_back(networks, e, with_flips);
  return flat;
}

// Room for `NetworkKernels::flip` on any of these networks.
std::size_t scratch_of(const std::vector<FlatNetwork>& flat) {
  std::size_t room = 0;
  for (const FlatNetwork& network : flat) room = std::max(room, 2 * network.bias.size());
  return room;
}

// +1 where the flip of a player puts it in, −1 where it takes it out; four at a time.
void signs_of(const std::uint64_t* mask, int n_players, float* signs) {
  static constexpr float kSigns[16][kNibble] = {{1, 1, 1, 1},   {-1, 1, 1, 1},   {1, -1, 1, 1},   {-1, -1, 1, 1},
                                                {1, 1, -1, 1},  {-1, 1, -1, 1},  {1, -1, -1, 1},  {-1, -1, -1, 1},
                                                {1, 1, 1, -1},  {-1, 1, 1, -1},  {1, -1, 1, -1},  {-1, -1, 1, -1},
                                                {1, 1, -1, -1}, {-1, 1, -1, -1}, {1, -1, -1, -1}, {-1, -1, -1, -1}};
  for (int i = 0; i < n_players; i += kNibble) std::copy_n(kSigns[mask[i / 64] >> (i % 64) & 15], kNibble, signs + i);
}

}  // namespace

void predict_logits(const Networks& networks, const std::uint64_t* masks, std::int64_t count, float* logits) {
  const std::vector<FlatNetwork> flat = flatten(networks, false);
  const NetworkKernels& kernel = network_kernels();
  const int n_words = words(networks.n_players);
  const int n_networks = networks.n_networks;
  cpu::parallel_for(count, kMasksPerRange, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> column(static_cast<std::size_t>(std::min(end - begin, kMasksPerRange)));
    for (std::int64_t first = begin; first < end; first += kMasksPerRange) {
      const std::int64_t n = std::min(kMasksPerRange, end - first);
      for (int e = 0; e < n_networks; ++e) {
        kernel.predict(flat[static_cast<std::size_t>(e)].tile, masks + first * n_words, n, n_words, column.data());
        for (std::int64_t row = 0; row < n; ++row) {
          logits[(first + row) * n_networks + e] = column[static_cast<std::size_t>(row)];
        }
      }
    }
  });
}

void flip_logits(const Networks& networks, const std::uint64_t* masks, std::int64_t count, float* logits,
                 float* flipped) {
  const std::vector<FlatNetwork> flat = flatten(networks, true);
  const NetworkKernels& kernel = network_kernels();
  const int n = networks.n_players;
  const int n_words = words(n);
  const std::int64_t n_networks = networks.n_networks;
  cpu::parallel_for(count, kMasksPerRange, [&](std::int64_t begin, std::int64_t end) {
    Aligned<float> scratch(scratch_of(flat));
    Aligned<float> neighbours(static_cast<std::size_t>(rounded_up(n, kPadding)));
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t e = 0; e < n_networks; ++e) {
        logits[row * n_networks + e] = kernel.flip(flat[static_cast<std::size_t>(e)].tile, masks + row * n_words,
                                                   scratch.data(), neighbours.data());
        std::copy_n(neighbours.begin(), n, flipped + (row * n_networks + e) * n);
      }
    }
  });
}

void marginals(const Networks& networks, const std::uint64_t* masks, std::int64_t count, double* mean,
               double* stderr_) {
  const std::vector<FlatNetwork> flat = flatten(networks, true);
  const NetworkKernels& kernel = network_kernels();
  const int n = networks.n_players;
  const int n_padded = rounded_up(n, kPadding);
  const int n_words = words(n);
  const std::int64_t per_range = std::max(kMasksPerRange, (count - 1) / kMaxRanges + 1);
  const std::int64_t n_ranges = (count - 1) / per_range + 1;
  const auto width = static_cast<std::size_t>(n);

  // Each range has its sums of the marginals and of their squares, which are added in order at the end. Up to
  // kMasksPerRange masks are summed in float32, their sums in float64.
  std::vector<double> sums(static_cast<std::size_t>(n_ranges) * 2 * width);
  cpu::parallel_for(n_ranges, 1, [&](std::int64_t begin, std::int64_t end) {
    const auto padded = static_cast<std::size_t>(n_padded);
    Aligned<float> scratch(scratch_of(flat));
    Aligned<float> logits(padded), changes(padded), signs(padded), few(padded), few_squares(padded);
    for (std::int64_t range = begin; range < end; ++range) {
      double* const sum = sums.data() + static_cast<std::size_t>(range) * 2 * width;
      const std::int64_t stop = std::min(count, (range + 1) * per_range);
      for (std::int64_t first = range * per_range; first < stop; first += kMasksPerRange) {
        std::fill(few.begin(), few.end(), 0.0f);
        std::fill(few_squares.begin(), few_squares.end(), 0.0f);
        for (std::int64_t row = first; row < std::min(stop, first + kMasksPerRange); ++row) {
          const std::uint64_t* const mask = masks + row * n_words;
          std::fill(changes.begin(), changes.end(), 0.0f);
          for (const FlatNetwork& network : flat) {
            const float base = kernel.flip(network.tile, mask, scratch.data(), logits.data());
            kernel.add_changes(base, logits.data(), n_padded, networks.sigmoid, changes.data());
          }
          signs_of(mask, n, signs.data());
          kernel.add_moments(changes.data(), signs.data(), n_padded, few.data(), few_squares.data());
        }
        for (int i = 0; i < n; ++i) {
          sum[i] += few[static_cast<std::size_t>(i)];
          sum[n + i] += few_squares[static_cast<std::size_t>(i)];
        }
      }
    }
  });

  const double total = static_cast<double>(count);
  for (int i = 0; i < n; ++i) {
    double sum = 0;
    double square = 0;
    for (std::int64_t range = 0; range < n_ranges; ++range) {
      sum += sums[static_cast<std::size_t>(range * 2 * n + i)];
      square += sums[static_cast<std::size_t>((range * 2 + 1) * n + i)];
    }
    const double spread = std::max(0.0, square - sum * sum / total);
    mean[i] = sum / total / networks.n_networks;
    stderr_[i] = std::sqrt(spread / (total - 1) / total) / networks.n_networks;
  }
}

struct Flipper::Tables {
  std::vector<FlatNetwork> flat;
  int n_players;
  Aligned<float> scratch, logits;
};

Flipper::Flipper(const Networks& networks) : tables_(new Tables{flatten(networks, true), networks.n_players, {}, {}}) {
  tables_->scratch.resize(scratch_of(tables_->flat));
  tables_->logits.resize(static_cast<std::size_t>(rounded_up(networks.n_players, kPadding)));
}

Flipper::~Flipper() = default;

double Flipper::scores(std::uint64_t mask, double* flipped) const {
  const NetworkKernels& kernel = network_kernels();
  double score = 0;
  std::fill_n(flipped, tables_->n_players, 0.0);
  for (const FlatNetwork& network : tables_->flat) {
    score += kernel.flip(network.tile, &mask, tables_->scratch.data(), tables_->logits.data());
    for (int i = 0; i < tables_->n_players; ++i) flipped[i] += tables_->logits[static_cast<std::size_t>(i)];
  }
  return score;
}

}  // namespace layercoop::surrogate
