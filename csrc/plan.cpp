#include "plan.h"

#include <algorithm>
#include <bitset>
#include <functional>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

namespace layercoop {
namespace {

constexpr int kRoot = -1;   // the position of the embedding; a state's position is its last kept player
constexpr int kEmbed = -1;  // the step that writes embeddings
constexpr int kNoSource = -1;

// Where each mask leaves the path of the mask before it; arrays over the distinct masks.
struct Branches {
  std::vector<std::int32_t> first;  // first player in which mask i differs from mask i - 1: it keeps it, i - 1 does not
  std::vector<std::int32_t> from;   // position of the deepest state the two share
  std::vector<std::int32_t> last;   // position of mask i's own complete state

  explicit Branches(const SortedMasks& masks) {
    const auto size = static_cast<std::size_t>(masks.size());
    first.reserve(size);
    from.reserve(size);
    last.reserve(size);
    for (std::int64_t i = 0; i < masks.size(); ++i) {
      first.push_back(i == 0 ? 0 : masks.first_difference(i - 1, i));
      from.push_back(masks.last_kept_below(i, first.back()));
      last.push_back(masks.last_kept_below(i, masks.n_players));
    }
  }
};

TrieCounts counts_of(const SortedMasks& masks, const Branches& branches) {
  TrieCounts counts;
  std::vector<std::int32_t> kept(static_cast<std::size_t>(masks.size()));
  popcounts(masks.rows.data(), masks.size(), masks.n_words, kept.data());
  for (const std::int64_t mask : masks.inverse) counts.skip += kept[static_cast<std::size_t>(mask)];
  // Mask i shares the nodes above its branch with mask i - 1; the players it keeps from there on are new nodes.
  for (std::int64_t i = 0; i < masks.size(); ++i) {
    counts.plan += masks.kept_from(i, branches.first[static_cast<std::size_t>(i)]);
  }
  counts.naive = static_cast<std::int64_t>(masks.inverse.size()) * masks.n_players;
  counts.unique = masks.size();
  return counts;
}

// The states pending between mask b - 1 and mask b: those on the path of b - 1 from which b or a later mask branches.
//
// The first to branch is b. The next to branch further up is the first later mask with a smaller first difference, and
// so on: a chain through the masks. Pending at b are its own branching state and what is pending at the next mask of
// the chain. The embedding is never counted: writing it again costs less than the slot that would hold it.
class Pending {
 public:
  explicit Pending(const Branches& branches) : from_(branches.from) {
    const auto size = static_cast<std::int32_t>(branches.first.size());
    next_.resize(branches.first.size());
    count_.resize(branches.first.size() + 1);
    for (std::int32_t b = size - 1; b >= 0; --b) {
      std::int32_t up = b + 1;
      while (up < size && branches.first[at(up)] >= branches.first[at(b)]) up = next_[at(up)];
      next_[at(b)] = up;
      const int above = up < size ? from_[at(up)] : kRoot;
      count_[at(b)] = count_[at(up)] + (from_[at(b)] != above);
    }
  }

  std::int64_t count(std::int64_t boundary) const { return count_[at(boundary)]; }

  std::int64_t max_count() const { return *std::max_element(count_.begin(), count_.end()); }

  // The positions of the `limit` deepest.
  std::bitset<kMaxPlayers> deepest(std::int64_t boundary, std::int64_t limit) const {
    std::bitset<kMaxPlayers> positions;
    const auto size = static_cast<std::int64_t>(next_.size());
    int above = kRoot;
    for (std::int64_t b = boundary; b < size && limit > 0; b = next_[at(b)]) {
      const int position = from_[at(b)];
      if (position == kRoot) break;
      if (position == above) continue;
      positions.set(at(position));
      above = position;
      --limit;
    }
    return positions;
  }

 private:
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  const std::vector<std::int32_t>& from_;
  std::vector<std::int32_t> next_;   // the next of the chain, or the number of masks
  std::vector<std::int32_t> count_;  // [masks + 1]: nothing is pending after the last mask
};

// Hands out slots, lowest first. A slot is freed by its last holder, but can be taken again only after `settle`, so
// that no operation of a step writes where another operation of that step reads.
class Slots {
 public:
  std::int32_t take() {
    if (free_.empty()) {
      holders_.push_back(1);
      return static_cast<std::int32_t>(holders_.size() - 1);
    }
    const std::int32_t slot = free_.top();
    free_.pop();
    ++holders(slot);
    return slot;
  }

  void hold(std::int32_t slot) { ++holders(slot); }

  void let_go(std::int32_t slot) {
    if (--holders(slot) == 0) freed_.push_back(slot);
  }

  bool shared(std::int32_t slot) { return holders(slot) > 1; }

  void settle() {
    for (const std::int32_t slot : freed_) free_.push(slot);
    freed_.clear();
  }

  // A new slot is created only while all others are in use, so this is also the most that were in use at once.
  std::int64_t peak() const { return static_cast<std::int64_t>(holders_.size()); }

 private:
  std::int32_t& holders(std::int32_t slot) { return holders_[static_cast<std::size_t>(slot)]; }

  std::vector<std::int32_t> holders_;
  std::vector<std::int32_t> freed_;
  std::priority_queue<std::int32_t, std::vector<std::int32_t>, std::greater<>> free_;
};

class Scheduler {
 public:
  Scheduler(const SortedMasks& masks, const Branches& branches, const Pending& pending, std::int64_t max_states)
      : masks_(masks), branches_(branches), pending_(pending), max_states_(max_states) {}

  Schedule run(std::int64_t expected_evaluations) {
    out_.op_src.reserve(static_cast<std::size_t>(expected_evaluations + 1));
    out_.op_dst.reserve(static_cast<std::size_t>(expected_evaluations + 1));
    out_.emit_mask.reserve(static_cast<std::size_t>(masks_.size()));
    out_.emit_slot.reserve(static_cast<std::size_t>(masks_.size()));
    out_.op_offsets.push_back(0);
    out_.emit_offsets.push_back(0);
    for (std::int64_t begin = 0; begin < masks_.size();) {
      const std::int64_t end = chunk_end(begin);
      run_chunk(begin, end);
      begin = end;
    }
    out_.peak_states = slots_.peak();
    return std::move(out_);
  }

 private:
  // A stored state and the masks [begin, end), at least one, that are still to be completed from it.
  struct Item {
    std::int32_t slot;
    std::int32_t begin;
    std::int32_t end;
    std::int32_t position;
  };

  struct Parked {
    std::int32_t position;
    std::int32_t slot;
  };

  // Every item of a chunk has masks of its own, so a chunk of k masks fills at most k slots besides the parked states.
  // The largest chunk that fits. A single mask always fits, since parked states can be dropped.
  std::int64_t chunk_end(std::int64_t begin) const {
    std::int64_t end = std::min(masks_.size(), begin + max_states_);
    while (end > begin + 1 && end - begin + pending_.count(end) > max_states_) --end;
    return end;
  }

  void run_chunk(std::int64_t begin, std::int64_t end) {
    chunk_end_ = static_cast<std::int32_t>(end);
    park_ = pending_.deepest(end, max_states_ - (end - begin));
    start_items(begin, end);
    give_up_parked();
    embed();
    for (int player = 0; !frontier_.empty(); ++player) apply(player);
  }

  // One item for each parked state from which the chunk's masks branch; where that state was dropped, they start at
  // the deepest one above it.
  void start_items(std::int64_t begin, std::int64_t end) {
    int branch = masks_.n_players;
    for (std::int64_t mask = begin; mask < end; ++mask) {
      if (branches_.first[static_cast<std::size_t>(mask)] < branch) {
        branch = branches_.first[static_cast<std::size_t>(mask)];
        // No later mask shares more with the path of the parked states than this one.
        while (!parked_.empty() && parked_.back().position > branches_.from[static_cast<std::size_t>(mask)]) {
          slots_.let_go(parked_.back().slot);
          parked_.pop_back();
        }
        const Parked start = parked_.empty() ? Parked{kRoot, kNoSource} : parked_.back();
        if (frontier_.empty() || frontier_.back().position != start.position) {
          frontier_.push_back({start.slot, static_cast<std::int32_t>(mask), 0, start.position});
          if (start.position != kRoot) slots_.hold(start.slot);
        }
      }
      frontier_.back().end = static_cast<std::int32_t>(mask + 1);
    }
  }

  void give_up_parked() {
    const auto given_up = [&](const Parked& state) { return !park_[static_cast<std::size_t>(state.position)]; };
    for (const Parked& state : parked_) {
      if (given_up(state)) slots_.let_go(state.slot);
    }
    parked_.erase(std::remove_if(parked_.begin(), parked_.end(), given_up), parked_.end());
    slots_.settle();
  }

  // Items are ordered from the deepest start to the shallowest, so only the last can be at the embedding.
  void embed() {
    Item& item = frontier_.back();
    if (item.position != kRoot) return;
    item.slot = slots_.take();
    add_op(kNoSource, item.slot);
    if (!complete_first(item)) frontier_.pop_back();
    end_step(kEmbed);
  }

  // Runs a player on every item with masks that keep it.
  void apply(int player) {
    grown_.clear();
    for (const Item& item : frontier_) {
      const std::int32_t split = item.position < player ? first_keeping(item, player) : item.end;
      if (split == item.end) {
        grown_.push_back(item);
        continue;
      }
      Item child{item.slot, split, item.end, player};
      const bool stays = split > item.begin;
      if (stays) grown_.push_back({item.slot, item.begin, split, item.position});
      if (stays || slots_.shared(item.slot)) {
        child.slot = slots_.take();
        if (!stays) slots_.let_go(item.slot);
      }
      add_op(item.slot, child.slot);
      ++out_.evaluations;
      if (child.end == chunk_end_ && park_[static_cast<std::size_t>(player)]) {
        parked_.push_back({player, child.slot});
        slots_.hold(child.slot);
      }
      if (complete_first(child)) grown_.push_back(child);
    }
    frontier_.swap(grown_);
    end_step(player);
  }

  // The first mask of an item that keeps the player: the masks share all players before it, so they come last.
  std::int32_t first_keeping(const Item& item, int player) const {
    if (masks_.kept(item.begin, player)) return item.begin;
    if (!masks_.kept(item.end - 1, player)) return item.end;
    std::int32_t removed = item.begin;
    std::int32_t kept = item.end - 1;
    while (kept - removed > 1) {
      const std::int32_t middle = removed + (kept - removed) / 2;
      (masks_.kept(middle, player) ? kept : removed) = middle;
    }
    return kept;
  }

  // Emits the item's first mask if the item's state completes it. If no mask is left, releases the slot and returns
  // false.
  bool complete_first(Item& item) {
    if (branches_.last[static_cast<std::size_t>(item.begin)] != item.position) return true;
    out_.emit_mask.push_back(item.begin);
    out_.emit_slot.push_back(item.slot);
    if (++item.begin < item.end) return true;
    slots_.let_go(item.slot);
    return false;
  }

  void add_op(std::int32_t src, std::int32_t dst) {
    out_.op_src.push_back(src);
    out_.op_dst.push_back(dst);
  }

  void end_step(int player) {
    slots_.settle();
    const auto ops = static_cast<std::int64_t>(out_.op_src.size());
    if (ops == out_.op_offsets.back()) return;
    out_.step_player.push_back(player);
    out_.op_offsets.push_back(ops);
    out_.emit_offsets.push_back(static_cast<std::int64_t>(out_.emit_mask.size()));
  }

  const SortedMasks& masks_;
  const Branches& branches_;
  const Pending& pending_;
  const std::int64_t max_states_;

  Slots slots_;
  std::vector<Parked> parked_;     // shallowest first, all on the path of the mask before the chunk
  std::bitset<kMaxPlayers> park_;  // positions to be parked at the end of this chunk
  std::int32_t chunk_end_ = 0;
  std::vector<Item> frontier_;  // in the order of their masks
  std::vector<Item> grown_;
  Schedule out_;
};

}  // namespace

TrieCounts count_trie(const std::uint64_t* packed, std::int64_t count, int n_players) {
  const SortedMasks masks = sort_masks(packed, count, n_players);
  return counts_of(masks, Branches(masks));
}

Plan::Plan(const std::uint64_t* packed, std::int64_t count, int players, std::int64_t budget)
    : n_masks(count), n_players(players), max_states(budget) {
  if (budget < 1) {
    throw std::invalid_argument("max_states: " + std::to_string(budget) + " is too few; at least 1 is needed");
  }
  SortedMasks masks = sort_masks(packed, count, players);
  const Branches branches(masks);
  const Pending pending(branches);
  counts = counts_of(masks, branches);
  states_without_recompute = masks.size() > 0 ? 1 + pending.max_count() : 0;
  const std::int64_t of_use = std::min(budget, std::max<std::int64_t>(masks.size(), 1));
  schedule = Scheduler(masks, branches, pending, of_use).run(counts.plan);
  unique_rows = std::move(masks.unique_rows);
  inverse = std::move(masks.inverse);
}

}  // namespace layercoop
