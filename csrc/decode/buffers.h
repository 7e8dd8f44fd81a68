// What a step keeps between its stages.
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

// Rows whose products share one pass over the weights. A call of no more of them is small: each thread keeps the state
// of every row by itself, which saves the barriers that sharing would take.
constexpr std::int64_t kTileRows = 16;

// A query's attention so far.
struct Partial {
  float largest;
  float sum;
};

// Inputs of products, kTileRows rows each.
using Tiles = std::vector<std::unique_ptr<Inputs>>;

// One thread's own.
struct Private {
  cpu::Aligned<float> x;      // [kTileRows, hidden], in small calls
  Inputs inputs;              // kTileRows rows
  cpu::Aligned<float> wide;   // [kTileRows, 2 * padded_inner]
  cpu::Aligned<float> space;  // a row
  // Of kTileRows rows, the queries of one key head: what they found in one chunk, and in all chunks so far.
  std::vector<Partial> found, total;
  cpu::Aligned<float> found_out, total_out;  // [kTileRows * group, padded_width]
  float best[kTileRows];
  std::int64_t best_word[kTileRows];
  // The likeliest words of its share: [kTileRows, top], and how many there are.
  std::vector<float> top_logits;
  std::vector<std::int64_t> top_words;
  std::int64_t top_count[kTileRows];

  Private(const Model& model, std::int64_t padded_width);
};

// What rows do in a block. Those that nobody asks for any more, as most of a prompt, only leave their keys and values
// in the last block with attention.
enum Part : std::size_t { kForks, kKeys, kAttends, kMlps, kParts };

struct Workspace::Buffers {
  std::vector<std::unique_ptr<Private>> own;  // one a thread

  cpu::Aligned<float> qkv;    // [rows, qkv_rows]
  cpu::Aligned<float> delta;  // [rows, hidden]
  // Small calls: partial attention [rows, heads, chunks] and its results [.., padded_width]; gate and up, and the MLP's
  // inside, [rows, 2 * padded_inner] and [rows, padded_inner].
  std::vector<Partial> partial;
  cpu::Aligned<float> partial_out;
  cpu::Aligned<float> gate_up, inner;
  // Others: the rows' states, and inputs of products for every kTileRows of them.
  cpu::Aligned<float> x;  // [rows, hidden]
  Tiles tiles, inner_tiles;

  cpu::Aligned<float> logits;  // [kTileRows, words], where the caller wants none

  std::vector<std::int64_t> next;  // one a thread: of its likeliest words, the first that was not taken

  // Which rows do what: of block l, rows[starts[kParts l + part]] to rows[starts[kParts l + part + 1]].
  std::vector<std::int32_t> rows;
  std::vector<std::size_t> starts;
  std::vector<std::int64_t> needed;  // the block before which a row's state is last asked for; L: that of the head

  // Room for a call; `chunks` is the most of a row's attention.
  void grow(const Model& model, const Pages& pages, const Rows& call, std::int64_t chunks, int threads,
            const Results& results);

 private:
  void list_rows(std::int64_t layers, const Rows& call);
};

}  // namespace layercoop::decode
