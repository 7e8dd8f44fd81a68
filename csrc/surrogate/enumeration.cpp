#include "surrogate/enumeration.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <utility>

#include "cpu/aligned.h"
#include "cpu/pool.h"
#include "surrogate/beam.h"

namespace layercoop::surrogate {
namespace {

using cpu::Aligned;

constexpr int kMaxMid = 5;
constexpr int kMaxInner = 8;
constexpr int kMaxLocal = kBlockPlayers + kMaxMid + kMaxInner;  // players of a task
constexpr int kSizes = kMaxLocal + 1;
constexpr int kOuter = kMaxMid + kMaxInner;  // players of a task outside its blocks
constexpr int kClasses = kOuter + 1;         // how many of them a mask keeps
constexpr int kInnerClasses = kMaxInner + 1;
constexpr std::int64_t kSlots = 64;  // tasks between two merges
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Vector sums are kept for these sets of outer players: none, each, each pair. A set's sum runs over the masks that
// contain it.
constexpr int kSingles = 1;
constexpr int kPairs = kSingles + kOuter;
constexpr int single(int i) { return kSingles + i; }
constexpr int pair(int i, int j) { return kPairs + j * (j - 1) / 2 + i; }  // i < j
constexpr int kAllSets = kPairs + kOuter * (kOuter - 1) / 2;

int popcount(std::int64_t mask) { return __builtin_popcountll(static_cast<std::uint64_t>(mask)); }

bool better(const Candidate& a, const Candidate& b) { return a.score != b.score ? a.score > b.score : a.mask < b.mask; }

// A heap of at most `limit` candidates with the worst in front.
void offer(std::vector<Candidate>& heap, int limit, const Candidate& candidate) {
  if (static_cast<int>(heap.size()) == limit) {
    if (!better(candidate, heap.front())) return;
    std::pop_heap(heap.begin(), heap.end(), better);
    heap.pop_back();
  }
  heap.push_back(candidate);
  std::push_heap(heap.begin(), heap.end(), better);
}

// The least score that can still enter a heap whose scores are at least `floor`. A later score must be larger to enter.
float threshold(const std::vector<Candidate>& heap, int limit, float floor) {
  if (limit == 0) return kInfinity;
  if (static_cast<int>(heap.size()) < limit) return floor;
  return std::max(floor, std::nextafter(heap.front().score, kInfinity));
}

void add_to(const float* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// out[c + kept block players] += sums[c, lane], over the lanes that contain `subset`.
void fold_lanes(const float* sums, int n_lanes, int subset, double* out) {
  for (int c = 0; c < kClasses; ++c) {
    for (int lane = subset; lane < n_lanes; lane = (lane + 1) | subset) {
      out[c + popcount(lane)] += sums[c * kBlock + lane];
    }
  }
}

}  // namespace

// The tables of one network.
struct Enumeration::Table {
  SplitNetwork network;
  Aligned<float> low_linear;     // [mid masks, n_units, kBlock]
  Aligned<float> low_factor;     // [mid masks, n_fast, kBlock]
  Aligned<double> inner_linear;  // [groups, n_units, kGroup]
  Aligned<double> inner_factor;  // [groups, n_fast, kGroup]
};

// What one thread needs for one task.
struct Enumeration::Scratch {
  std::vector<Aligned<float>> high_linear;  // for each network [groups, n_units, kGroup]
  std::vector<Aligned<float>> high_factor;
  Aligned<float> logits;  // of one network; all below are [rows, kBlock]
  Aligned<float> scores;
  Aligned<float> values;
  Aligned<float> by_row;  // over the mid masks of one size
  Aligned<float> sets;    // [sets, kClasses, kBlock]
  alignas(64) float by_class[kInnerClasses * kBlock];
  alignas(64) float squares[kClasses * kBlock];
  alignas(64) float thresholds[kClasses * kBlock];
  Aligned<float> shifts;     // [kClasses, kBlock]
  Aligned<float> remaining;  // [rows] of the budget
  std::vector<int> hits;     // [rows]

  float* set(int index) { return sets.data() + static_cast<std::ptrdiff_t>(index) * kClasses * kBlock; }
  const float* set(int index) const { return sets.data() + static_cast<std::ptrdiff_t>(index) * kClasses * kBlock; }
};

// The results of one task. Sizes and players are those within the task; `merge` adds the top players.
struct Enumeration::Slot {
  double sizes[kSizes] = {};
  double squares[kSizes] = {};
  double players[kMaxLocal][kSizes] = {};
  std::vector<double> pairs;  // [kMaxLocal, kMaxLocal, kSizes]
  std::vector<Candidate> best[kSizes];
  std::optional<Candidate> affordable;

  double* pair_of(int i, int j) { return pairs.data() + (i * kMaxLocal + j) * kSizes; }
  const double* pair_of(int i, int j) const { return pairs.data() + (i * kMaxLocal + j) * kSizes; }
};

Enumeration::Enumeration(const Networks& networks, const EnumerationRequest& request)
    : n_(networks.n_players),
      activation_(networks.activation),
      sigmoid_(networks.sigmoid),
      n_networks_(networks.n_networks),
      request_(request) {
  const std::vector<double>& shifts = request_.shifts;
  const double typical = std::accumulate(shifts.begin(), shifts.end(), 0.0) / static_cast<double>(shifts.size());
  side_ = sigmoid_ && typical > 0.5 ? -1.0f : 1.0f;
  const int padded = std::max(n_, kBlockPlayers + 3);  // dummy players fill the first block and group
  n_mid_ = std::clamp(padded - kBlockPlayers - 3, 0, kMaxMid);
  n_inner_ = std::min(padded - kBlockPlayers - n_mid_, kMaxInner);
  n_top_ = padded - kBlockPlayers - n_mid_ - n_inner_;
  n_lanes_ = 1 << std::min(n_, kBlockPlayers);
  n_rows_ = 1 << std::clamp(n_ - kBlockPlayers - n_mid_, 0, n_inner_);
  const int rows = 1 << n_inner_;
  for (int row = 0; row < rows; ++row) row_class_.push_back(static_cast<std::uint8_t>(popcount(row)));

  const int n_low = kBlockPlayers + n_mid_;
  tables_.resize(static_cast<std::size_t>(n_networks_));
  cpu::parallel_for(n_networks_, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t e = begin; e < end; ++e) {
      Table& table = tables_[static_cast<std::size_t>(e)];
      table.network = split_network(networks, static_cast<int>(e), std::min(n_low, n_));
      const SplitNetwork& net = table.network;
      std::vector<double> linear(static_cast<std::size_t>(net.n_units));
      std::vector<double> factor(static_cast<std::size_t>(net.n_fast));
      table.low_linear.resize(linear.size() << n_low);
      table.low_factor.resize(factor.size() << n_low);
      table.inner_linear.resize(linear.size() << n_inner_);
      table.inner_factor.resize(factor.size() << n_inner_);
      for (std::size_t mask = 0; mask >> n_low == 0; ++mask) {
        net.part(mask, 0, n_low, linear.data(), factor.data());
        const std::size_t mid = mask / kBlock, lane = mask % kBlock;
        for (std::size_t u = 0; u < linear.size(); ++u) {
          table.low_linear[(mid * linear.size() + u) * kBlock + lane] = static_cast<float>(linear[u]);
        }
        for (std::size_t u = 0; u < factor.size(); ++u) {
          table.low_factor[(mid * factor.size() + u) * kBlock + lane] = static_cast<float>(factor[u]);
        }
      }
      for (std::size_t mask = 0; mask >> n_inner_ == 0; ++mask) {
        net.part(mask, n_low, n_low + n_inner_, linear.data(), factor.data());
        const std::size_t group = mask / kGroup, k = mask % kGroup;
        for (std::size_t u = 0; u < linear.size(); ++u) {
          table.inner_linear[(group * linear.size() + u) * kGroup + k] = linear[u];
        }
        for (std::size_t u = 0; u < factor.size(); ++u) {
          table.inner_factor[(group * factor.size() + u) * kGroup + k] = factor[u];
        }
      }
    }
  });

  const auto n = static_cast<std::size_t>(n_);
  sums_.sizes.resize(n + 1);
  sums_.squares.resize(n + 1);
  sums_.players.resize(n * (n + 1));
  if (request_.pairs) sums_.pairs.resize(n * n * (n + 1));
  best_.resize(n + 1);
  floors_.assign(n + 1, -kInfinity);
  if (request_.top > 0) {
    const std::vector<double> scores = reachable_scores(networks, request_.top);
    for (std::size_t size = 0; size <= n; ++size) floors_[size] = static_cast<float>(scores[size]);
  }
}

Enumeration::~Enumeration() = default;

void Enumeration::run(std::int64_t count) {
  if (count <= 0) return;
  std::vector<Slot> slots(static_cast<std::size_t>(std::min({count, kSlots, n_tasks() - done_})));
  std::mutex mutex;  // guards scratches_ while threads take from it
  for (std::int64_t end = std::min(done_ + count, n_tasks()); done_ < end;) {
    const std::int64_t first = done_;
    const std::int64_t n_now = std::min(kSlots, end - first);
    cpu::parallel_for(n_now, 1, [&](std::int64_t begin, std::int64_t stop) {
      std::unique_ptr<Scratch> scratch;
      {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!scratches_.empty()) {
          scratch = std::move(scratches_.back());
          scratches_.pop_back();
        }
      }
      if (!scratch) scratch = std::make_unique<Scratch>();
      for (std::int64_t task = begin; task < stop; ++task) {
        run_task(first + task, *scratch, slots[static_cast<std::size_t>(task)]);
      }
      const std::lock_guard<std::mutex> lock(mutex);
      scratches_.push_back(std::move(scratch));
    });
    for (std::int64_t task = 0; task < n_now; ++task) merge(first + task, slots[static_cast<std::size_t>(task)]);
    done_ += n_now;
  }
}

void Enumeration::run_task(std::int64_t top_mask, Scratch& scratch, Slot& slot) const {
  const NetworkKernels& kernel = network_kernels();
  const auto rows = std::size_t{1} << n_inner_;
  const int top_size = popcount(top_mask);
  const int n_low = kBlockPlayers + n_mid_;

  slot = Slot();
  if (request_.pairs) slot.pairs.resize(std::size_t{kMaxLocal} * kMaxLocal * kSizes);
  slot.affordable = affordable_;
  for (auto* buffer : {&scratch.logits, &scratch.scores, &scratch.values}) buffer->resize(rows * kBlock);
  scratch.by_row.assign(rows * kBlock, 0);
  scratch.sets.assign(static_cast<std::size_t>((request_.pairs ? kAllSets : kPairs) * kClasses * kBlock), 0);
  scratch.shifts.resize(kClasses * kBlock);
  scratch.hits.resize(rows);
  std::fill(std::begin(scratch.squares), std::end(scratch.squares), 0.0f);
  for (int c = 0; c < kClasses; ++c) {
    for (int lane = 0; lane < kBlock; ++lane) {
      const int size = top_size + c + popcount(lane);
      const bool exists = lane < n_lanes_ && size <= n_;
      const auto at = static_cast<std::size_t>(exists ? size : 0);
      const double shift = (request_.shifts[at] - (side_ < 0 ? 1 : 0)) * n_networks_;
      scratch.shifts[static_cast<std::size_t>(c * kBlock + lane)] = static_cast<float>(shift);
      scratch.thresholds[c * kBlock + lane] = exists ? threshold(best_[at], request_.top, floors_[at]) : kInfinity;
    }
  }

  scratch.high_linear.resize(tables_.size());
  scratch.high_factor.resize(tables_.size());
  std::vector<double> linear, factor, share, power;
  for (std::size_t e = 0; e < tables_.size(); ++e) {
    const Table& table = tables_[e];
    const auto n_units = static_cast<std::size_t>(table.network.n_units);
    const auto n_fast = static_cast<std::size_t>(table.network.n_fast);
    linear.resize(n_units);
    factor.resize(n_fast);
    share.resize(n_units);
    power.resize(n_fast);
    table.network.offset(linear.data(), factor.data());
    table.network.part(static_cast<std::uint64_t>(top_mask), n_low + n_inner_, n_, share.data(), power.data());
    for (std::size_t u = 0; u < n_units; ++u) linear[u] += share[u];
    for (std::size_t u = 0; u < n_fast; ++u) factor[u] *= power[u];
    scratch.high_linear[e].resize(n_units * rows);
    scratch.high_factor[e].resize(n_fast * rows);
    for (std::size_t group = 0; group < rows / kGroup; ++group) {
      const std::size_t at = group * n_units * kGroup, fast_at = group * n_fast * kGroup;
      kernel.shift_table(table.inner_linear.data() + at, linear.data(), table.network.n_units,
                         scratch.high_linear[e].data() + at);
      kernel.scale_table(table.inner_factor.data() + fast_at, factor.data(), table.network.n_fast,
                         scratch.high_factor[e].data() + fast_at);
    }
  }
  if (!request_.costs.empty()) {
    double size_of_costs = std::abs(request_.budget);
    for (const double cost : request_.costs) size_of_costs += std::abs(cost);
    scratch.remaining.resize(rows);
    for (int row = 0; row < n_rows_; ++row) {
      // Rounded in favour of the mask: `search_affordable` decides exactly.
      scratch.remaining[static_cast<std::size_t>(row)] =
          static_cast<float>(request_.budget - cost_of(mask_of(top_mask, row, 0, 0)) + 1e-5 * size_of_costs);
    }
  }

  for (int mid_size = 0; mid_size <= n_mid_; ++mid_size) {
    std::fill(scratch.by_row.begin(), scratch.by_row.end(), 0.0f);
    for (int mid_mask = 0; mid_mask < 1 << n_mid_; ++mid_mask) {
      if (popcount(mid_mask) != mid_size) continue;
      evaluate_mid(mid_mask, scratch);
      sum_mid(top_mask, mid_mask, scratch, slot);
    }
    // The sets of inner players, once for all mid masks of this size.
    const auto add = [&](int subset, int set) {
      kernel.add_rows(scratch.by_row.data(), row_class_.data(), n_rows_, subset, scratch.set(set) + mid_size * kBlock);
    };
    for (int j = 0; j < n_inner_; ++j) {
      add(1 << j, single(n_mid_ + j));
      if (!request_.pairs) continue;
      for (int i = 0; i < j; ++i) add(1 << i | 1 << j, pair(n_mid_ + i, n_mid_ + j));
    }
  }
  fold(scratch, slot);
}

void Enumeration::evaluate_mid(int mid_mask, Scratch& scratch) const {
  const NetworkKernels& kernel = network_kernels();
  const auto count = static_cast<std::int64_t>(scratch.values.size());
  std::fill(scratch.values.begin(), scratch.values.end(), 0.0f);
  for (std::size_t e = 0; e < tables_.size(); ++e) {
    const SplitNetwork& net = tables_[e].network;
    const Tile tile{tables_[e].low_linear.data() + static_cast<std::ptrdiff_t>(mid_mask) * net.n_units * kBlock,
                    tables_[e].low_factor.data() + static_cast<std::ptrdiff_t>(mid_mask) * net.n_fast * kBlock,
                    scratch.high_linear[e].data(),
                    scratch.high_factor[e].data(),
                    net.scale.data(),
                    net.n_negative,
                    net.n_fast,
                    net.n_units,
                    (1 << n_inner_) / kGroup,
                    net.constant,
                    activation_};
    Aligned<float>& logits = e == 0 ? scratch.scores : scratch.logits;
    kernel.evaluate(tile, logits.data());
    if (sigmoid_) {
      kernel.add_sigmoid(logits.data(), count, side_, scratch.values.data());
    } else {
      kernel.add(logits.data(), count, scratch.values.data());
    }
    if (e > 0) kernel.add(logits.data(), count, scratch.scores.data());
  }
}

void Enumeration::sum_mid(std::int64_t top_mask, int mid_mask, Scratch& scratch, Slot& slot) const {
  const NetworkKernels& kernel = network_kernels();
  const int mid_size = popcount(mid_mask);
  const int at = mid_size * kBlock;  // a row of class c counts as class c + mid_size here
  std::fill(std::begin(scratch.by_class), std::end(scratch.by_class), 0.0f);
  const Sums sums{row_class_.data(),     scratch.shifts.data() + at, scratch.thresholds + at,
                  scratch.by_row.data(), scratch.by_class,           scratch.squares + at};
  const int n_hits = kernel.gather(sums, scratch.scores.data(), n_rows_, scratch.values.data(), scratch.hits.data());
  if (n_hits > 0) collect(top_mask, mid_mask, n_hits, scratch, slot);
  if (!request_.costs.empty()) search_affordable(top_mask, mid_mask, scratch, slot);

  const std::int64_t count = std::int64_t{n_inner_ + 1} * kBlock;
  add_to(scratch.by_class, count, scratch.set(0) + at);
  for (int j = 0; j < n_mid_; ++j) {
    if (!(mid_mask >> j & 1)) continue;
    add_to(scratch.by_class, count, scratch.set(single(j)) + at);
    if (!request_.pairs) continue;
    for (int i = 0; i < j; ++i) {
      if (mid_mask >> i & 1) add_to(scratch.by_class, count, scratch.set(pair(i, j)) + at);
    }
  }
  if (!request_.pairs || mid_mask == 0) return;
  for (int inner = 0; inner < n_inner_; ++inner) {
    std::fill(std::begin(scratch.by_class), std::end(scratch.by_class), 0.0f);
    kernel.add_rows(scratch.values.data(), row_class_.data(), n_rows_, 1 << inner, scratch.by_class);
    for (int j = 0; j < n_mid_; ++j) {
      if (mid_mask >> j & 1) add_to(scratch.by_class, count, scratch.set(pair(j, n_mid_ + inner)) + at);
    }
  }
}

void Enumeration::fold(const Scratch& scratch, Slot& slot) const {
  const int n_block = std::min(n_, kBlockPlayers);
  const int n_outer = std::clamp(n_ - kBlockPlayers, 0, n_mid_ + n_inner_);
  fold_lanes(scratch.set(0), n_lanes_, 0, slot.sizes);
  fold_lanes(scratch.squares, n_lanes_, 0, slot.squares);
  for (int j = 0; j < n_block; ++j) fold_lanes(scratch.set(0), n_lanes_, 1 << j, slot.players[j]);
  for (int j = 0; j < n_outer; ++j) {
    fold_lanes(scratch.set(single(j)), n_lanes_, 0, slot.players[kBlockPlayers + j]);
  }
  if (!request_.pairs) return;
  for (int j = 1; j < n_block; ++j) {
    for (int i = 0; i < j; ++i) fold_lanes(scratch.set(0), n_lanes_, 1 << i | 1 << j, slot.pair_of(i, j));
  }
  for (int j = 0; j < n_outer; ++j) {
    for (int i = 0; i < n_block; ++i) {
      fold_lanes(scratch.set(single(j)), n_lanes_, 1 << i, slot.pair_of(i, kBlockPlayers + j));
    }
    for (int i = 0; i < j; ++i) {
      fold_lanes(scratch.set(pair(i, j)), n_lanes_, 0, slot.pair_of(kBlockPlayers + i, kBlockPlayers + j));
    }
  }
}

void Enumeration::collect(std::int64_t top_mask, int mid_mask, int n_hits, Scratch& scratch, Slot& slot) const {
  for (int hit = 0; hit < n_hits; ++hit) {
    const int row = scratch.hits[static_cast<std::size_t>(hit)];
    const int c = row_class_[static_cast<std::size_t>(row)] + popcount(mid_mask);
    for (int lane = 0; lane < n_lanes_; ++lane) {
      const float score = scratch.scores[static_cast<std::size_t>(row * kBlock + lane)];
      if (score < scratch.thresholds[c * kBlock + lane]) continue;
      const int size = c + popcount(lane);
      std::vector<Candidate>& heap = slot.best[size];
      offer(heap, request_.top, {score, mask_of(top_mask, row, mid_mask, lane)});
      const float worst = threshold(heap, request_.top, floors_[static_cast<std::size_t>(popcount(top_mask) + size)]);
      for (int k = std::max(0, size - kBlockPlayers); k <= std::min(size, kClasses - 1); ++k) {
        for (int other = 0; other < n_lanes_; ++other) {
          float& lowest = scratch.thresholds[k * kBlock + other];
          if (popcount(other) == size - k) lowest = std::max(lowest, worst);
        }
      }
    }
  }
}

void Enumeration::search_affordable(std::int64_t top_mask, int mid_mask, Scratch& scratch, Slot& slot) const {
  float costs[kBlock];
  for (int lane = 0; lane < kBlock; ++lane) {
    costs[lane] = lane < n_lanes_ ? static_cast<float>(cost_of(mask_of(0, 0, mid_mask, lane))) : kInfinity;
  }
  const float best = slot.affordable ? slot.affordable->score : -kInfinity;
  const int n_hits = network_kernels().affordable(scratch.scores.data(), n_rows_, best, costs, scratch.remaining.data(),
                                                  scratch.hits.data());
  for (int hit = 0; hit < n_hits; ++hit) {
    const int row = scratch.hits[static_cast<std::size_t>(hit)];
    for (int lane = 0; lane < n_lanes_; ++lane) {
      const Candidate candidate{scratch.scores[static_cast<std::size_t>(row * kBlock + lane)],
                                mask_of(top_mask, row, mid_mask, lane)};
      if (slot.affordable && !better(candidate, *slot.affordable)) continue;
      if (cost_of(candidate.mask) <= request_.budget) slot.affordable = candidate;
    }
  }
}

void Enumeration::merge(std::int64_t top_mask, const Slot& slot) {
  const int n_local = std::min(n_, kBlockPlayers + n_mid_ + n_inner_);
  const int top_size = popcount(top_mask);
  const double scale = 1.0 / n_networks_;
  const auto row = static_cast<std::size_t>(n_ + 1);
  const auto add = [&](const double* from, double factor, double* to) {
    for (int s = 0; s <= n_local; ++s) to[top_size + s] += factor * from[s];
  };
  const auto player = [&](int i) { return sums_.players.data() + static_cast<std::size_t>(i) * row; };
  const auto pair_of = [&](int i, int j) { return sums_.pairs.data() + static_cast<std::size_t>(i * n_ + j) * row; };

  add(slot.sizes, scale, sums_.sizes.data());
  add(slot.squares, scale * scale, sums_.squares.data());
  for (int i = 0; i < n_local; ++i) add(slot.players[i], scale, player(i));
  for (int t = 0; t < n_top_; ++t) {
    if (top_mask >> t & 1) add(slot.sizes, scale, player(n_local + t));
  }
  if (request_.pairs) {
    for (int j = 1; j < n_local; ++j) {
      for (int i = 0; i < j; ++i) add(slot.pair_of(i, j), scale, pair_of(i, j));
    }
    for (int t = 0; t < n_top_; ++t) {
      if (!(top_mask >> t & 1)) continue;
      for (int i = 0; i < n_local; ++i) add(slot.players[i], scale, pair_of(i, n_local + t));
      for (int u = 0; u < t; ++u) {
        if (top_mask >> u & 1) add(slot.sizes, scale, pair_of(n_local + u, n_local + t));
      }
    }
  }
  for (int s = 0; s <= n_local; ++s) {
    for (const Candidate& candidate : slot.best[s]) {
      offer(best_[static_cast<std::size_t>(top_size + s)], request_.top, candidate);
    }
  }
  if (slot.affordable && (!affordable_ || better(*slot.affordable, *affordable_))) affordable_ = slot.affordable;
}

std::vector<std::int64_t> Enumeration::counts() const {
  const int n_local = std::min(n_, kBlockPlayers + n_mid_ + n_inner_);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(n_ + 1));
  for (std::int64_t top_mask = 0; top_mask < done_; ++top_mask) {
    std::int64_t choose = 1;
    for (int s = 0; s <= n_local; ++s) {
      counts[static_cast<std::size_t>(popcount(top_mask) + s)] += choose;
      choose = choose * (n_local - s) / (s + 1);
    }
  }
  return counts;
}

std::vector<Candidate> Enumeration::best(int size) const {
  std::vector<Candidate> masks = best_[static_cast<std::size_t>(size)];
  std::sort(masks.begin(), masks.end(), better);
  return masks;
}

std::uint64_t Enumeration::mask_of(std::int64_t top_mask, int inner_mask, int mid_mask, int lane) const {
  const int n_low = kBlockPlayers + n_mid_;
  return static_cast<std::uint64_t>(lane) | static_cast<std::uint64_t>(mid_mask) << kBlockPlayers |
         static_cast<std::uint64_t>(inner_mask) << n_low | static_cast<std::uint64_t>(top_mask) << (n_low + n_inner_);
}

double Enumeration::cost_of(std::uint64_t mask) const {
  double cost = 0;
  for (int i = 0; i < n_; ++i) {
    if (mask >> i & 1) cost += request_.costs[static_cast<std::size_t>(i)];
  }
  return cost;
}

}  // namespace layercoop::surrogate
