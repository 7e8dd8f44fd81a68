// Evaluates every mask of an ensemble once: sums of the values, from which all exact averages follow, and the best
// masks.
//
// Players are divided into four runs of bits, so that sums never run across lanes and tables stay in cache:
//
//     [block 5 | mid <= 5 | inner <= 8 | top]
//
// A *task* fixes the top players: some 2^18 masks. Within it the mid masks come one after another; each keeps the
// tables of its 32 block masks in the first-level cache while all inner masks are evaluated. Tasks are independent, and
// their results are added in order, so the sums do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "surrogate/networks.h"

namespace layercoop::surrogate {

constexpr int kMaxEnumerated = 36;

// A mask (bit i = player i) and its score: the sum over the networks of the value before the output function.
struct Candidate {
  float score;
  std::uint64_t mask;
};

struct EnumerationRequest {
  std::vector<double> shifts;  // [n + 1] roughly the mean value of each size; it is subtracted before summing
  bool pairs = false;          // whether to sum by pairs of players too
  int top = 0;                 // masks kept for every size
  std::vector<double> costs;   // [n] or empty
  double budget = 0;           // of Σ costs over the kept players
};

// Sums over the masks seen so far of f(m) − shifts[size of m], f the ensemble's mean value.
struct EnumerationSums {
  std::vector<double> sizes;    // [n + 1]
  std::vector<double> squares;  // [n + 1] of the squares
  std::vector<double> players;  // [n, n + 1] over the masks with player i
  std::vector<double> pairs;    // [n, n, n + 1] over the masks with players i < j; empty without `pairs`
};

class Enumeration {
 public:
  // The arrays of `networks` are copied into tables and not needed afterwards. 1 <= n <= kMaxEnumerated.
  Enumeration(const Networks& networks, const EnumerationRequest& request);
  ~Enumeration();

  std::int64_t n_tasks() const { return std::int64_t{1} << n_top_; }
  std::int64_t n_done() const { return done_; }

  // The next `count` tasks, or as many as are left.
  void run(std::int64_t count);

  // Masks of each size seen so far, [n + 1].
  std::vector<std::int64_t> counts() const;
  const EnumerationSums& sums() const { return sums_; }

  // The best masks of a size, best first; equal scores by mask.
  std::vector<Candidate> best(int size) const;
  std::optional<Candidate> affordable() const { return affordable_; }

 private:
  struct Table;
  struct Scratch;
  struct Slot;

  void run_task(std::int64_t top_mask, Scratch& scratch, Slot& slot) const;
  void evaluate_mid(int mid_mask, Scratch& scratch) const;
  void sum_mid(std::int64_t top_mask, int mid_mask, Scratch& scratch, Slot& slot) const;
  void fold(const Scratch& scratch, Slot& slot) const;
  void collect(std::int64_t top_mask, int mid_mask, int n_hits, Scratch& scratch, Slot& slot) const;
  void search_affordable(std::int64_t top_mask, int mid_mask, Scratch& scratch, Slot& slot) const;
  void merge(std::int64_t top_mask, const Slot& slot);
  std::uint64_t mask_of(std::int64_t top_mask, int inner_mask, int mid_mask, int lane) const;
  double cost_of(std::uint64_t mask) const;

  int n_;
  int n_mid_;
  int n_inner_;
  int n_top_;
  int n_lanes_;  // valid masks of a block, and of the inner players: fewer than there is room for when n < 8
  int n_rows_;
  Activation activation_;
  bool sigmoid_;
  float side_;  // −1: values are summed as f − 1, since most are near 1
  int n_networks_;
  EnumerationRequest request_;
  std::vector<Table> tables_;  // one for each network
  std::vector<std::uint8_t> row_class_;

  std::int64_t done_ = 0;
  EnumerationSums sums_;
  std::vector<std::vector<Candidate>> best_;  // [n + 1] heaps, worst first
  std::vector<float> floors_;                 // [n + 1] scores below which no mask is among the best
  std::optional<Candidate> affordable_;
  std::vector<std::unique_ptr<Scratch>> scratches_;
};

}  // namespace layercoop::surrogate
