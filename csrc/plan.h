// The plan of a set of masks: which layer runs on which stored state, so that masks share the prefixes they have in
// common, within a number of states that may exist at once.
//
// Masks form a trie: a node is a distinct kept prefix ({} = the embedding, {0, 2} = the state after layers 0 and 2), so
// trailing removed players make no node. Computing every node once is the floor for exact evaluation,
// `TrieCounts::plan`.
//
// The masks are processed in lexicographic order, in chunks. Inside a chunk the players are taken in order, and a step
// applies one player to every state that needs it: as wide a batch as the budget allows. At the end of a chunk the
// states from which later masks still branch are *parked*. They lie on the path of the chunk's last mask, so there are
// at most as many as that mask removes. If the budget cannot hold even these, the shallowest are dropped, since they
// are needed last and cheapest to recompute: each is computed again from the deepest parked state above it, or from the
// embedding.
#pragma once

#include <cstdint>
#include <vector>

#include "masks.h"

namespace layercoop {

// Layer evaluations that three ways of evaluating the same masks take.
struct TrieCounts {
  std::int64_t naive = 0;   // every player for every mask
  std::int64_t skip = 0;    // the kept players of every mask
  std::int64_t plan = 0;    // the distinct non-empty kept prefixes
  std::int64_t unique = 0;  // distinct masks
};

TrieCounts count_trie(const std::uint64_t* packed, std::int64_t count, int n_players);

// Step t applies player `step_player[t]` to the states in slots op_src and writes those in slots op_dst, for the
// operations op_offsets[t] .. op_offsets[t + 1]; then the masks emit_mask are complete in slots emit_slot, for
// emit_offsets[t] .. emit_offsets[t + 1], and must be scored before the next step. Player -1 writes the embedding into
// op_dst; its op_src is -1. An operation's dst is its own src or a slot that held nothing when the step began, so a
// step's operations can run in any order and in any batches.
struct Schedule {
  std::vector<std::int32_t> step_player;   // [T]
  std::vector<std::int64_t> op_offsets;    // [T + 1]
  std::vector<std::int32_t> op_src;        // [N]
  std::vector<std::int32_t> op_dst;        // [N]
  std::vector<std::int64_t> emit_offsets;  // [T + 1]
  std::vector<std::int64_t> emit_mask;     // [size] number of a distinct mask
  std::vector<std::int32_t> emit_slot;     // [size]
  std::int64_t evaluations = 0;            // operations of players, embeddings not counted
  std::int64_t peak_states = 0;            // slots in use at once, at most; slots are numbered from 0 without gaps
};

struct Plan {
  TrieCounts counts;
  std::int64_t n_masks = 0;
  int n_players = 0;
  std::int64_t max_states = 0;
  std::int64_t states_without_recompute = 0;  // with a budget of this many, every node is computed once
  std::vector<std::int64_t> unique_rows;
  std::vector<std::int64_t> inverse;
  Schedule schedule;

  // Throws std::invalid_argument where budget < 1; any larger budget works.
  Plan(const std::uint64_t* packed, std::int64_t count, int players, std::int64_t budget);
};

}  // namespace layercoop
