// The memory of a step (step.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/aligned.h"
#include "decode/model.h"
#include "decode/pages.h"
#include "decode/products.h"
#include "decode/step.h"

namespace layercoop::decode {

// Rows whose products share one pass over the weights. A call of at most that many rows is small: each thread keeps its
// own copy of every row's state, which saves the barriers of sharing them.
constexpr std::int64_t kTileRows = 16;

// A query's attention over the keys so far.
struct Partial {
  float largest;
  float sum;
};

// Inputs of products, kTileRows rows each.
using Tiles = std::vector<std::unique_ptr<Inputs>>;

// The memory of one thread.
struct Private {
  cpu::Aligned<float> x;      // [kTileRows, hidden], in small calls
  Inputs inputs;              // kTileRows rows
  cpu::Aligned<float> wide;   // [kTileRows, 2 * padded_inner]
  cpu::Aligned<float> space;  // a row
  // For the queries of one key head in kTileRows rows: their attention over one chunk, and over all chunks so far.
  std::vector<Partial> found, total;
  cpu::Aligned<float> found_out, total_out;  // [kTileRows * group, padded_width]
  float best[kTileRows];
  std::int64_t best_token[kTileRows];
  // The most likely tokens of its share: [kTileRows, top], and how many there are.
  std::vector<float> top_logits;
  std::vector<std::int64_t> top_tokens;
  std::int64_t top_count[kTileRows];

  Private(const Model& model, std::int64_t padded_width);
};

// What rows do in a block. Rows whose final state is not needed, as most of a prompt, only store keys and values in
// their last block with attention.
enum Part : std::size_t { kForks, kKeys, kAttends, kMlps, kParts };

struct Workspace::Buffers {
  std::vector<std::unique_ptr<Private>> own;  // one for each thread

  cpu::Aligned<float> qkv;    // [rows, qkv_rows]
  cpu::Aligned<float> delta;  // [rows, hidden]
  // In small calls: partial attention [rows, heads, chunks] and its results [.., padded_width]; gate and up
  // [rows, 2 * padded_inner], and their product [rows, padded_inner].
  std::vector<Partial> partial;
  cpu::Aligned<float> partial_out;
  cpu::Aligned<float> gate_up, inner;
  // In other calls: the rows' states, and inputs of products, a tile for every kTileRows rows.
  cpu::Aligned<float> x;  // [rows, hidden]
  Tiles tiles, inner_tiles;

  cpu::Aligned<float> logits;  // [kTileRows, vocabulary], if the caller does not want logits

  std::vector<std::int64_t> next;  // for each thread, the first of its most likely tokens that is not yet merged

  // Which rows do what: part `part` of block l is for rows[starts[kParts * l + part]] to
  // rows[starts[kParts * l + part + 1]].
  std::vector<std::int32_t> rows;
  std::vector<std::size_t> starts;
  std::vector<std::int64_t> needed;  // for each row, the last block before which its state is needed; L: by the head

  // Makes room for a call; `chunks` is the largest number of chunks of keys that a row attends to.
  void grow(const Model& model, const Pages& pages, const Rows& call, std::int64_t chunks, int threads,
            const Results& results);

 private:
  void list_rows(std::int64_t layers, const Rows& call);
};

}  // namespace layercoop::decode
