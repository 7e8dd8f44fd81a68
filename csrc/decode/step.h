// One call computes the tokens of one step, or of a piece of a prompt, from embedding to logits.
//
// Rows are tokens of one or several sequences, each sequence under its own mask. A block, or a half of one, runs once
// for all rows that keep it. The threads of cpu/team go through the blocks together. A row's results do not depend, bit
// for bit, on the number of threads nor on the other rows.
#pragma once

#include <cstdint>
#include <memory>

#include "decode/model.h"
#include "decode/pages.h"

namespace layercoop::decode {

// Halves of a block, as bits of a mask.
constexpr std::uint8_t kAttention = 1;
constexpr std::uint8_t kMlp = 2;

// What to compute. The caller checks shapes and values (bind_decode.cpp does).
struct Rows {
  std::int64_t rows;              // R
  std::int64_t sequences;         // S
  std::int64_t table_width;       // P
  const std::int32_t* tokens;     // [R]
  const std::int32_t* positions;  // [R]; the rows of a sequence are neighbours, at consecutive positions
  const std::int32_t* sequence;   // [R]
  const std::int32_t* parent;     // [R]: an earlier row, or negative for none
  const std::int32_t* fork;       // [R]: with a parent, the row starts from its state before this block
  const std::uint8_t* masks;      // [S, L]
  const std::int32_t* tables;     // [S, L, P]: the page of the positions from kPage * p on
  std::int64_t n_wanted;          // K
  const std::int32_t* wanted;     // [K]
};

// Where keys and values lie: page i begins at data + i * pages.page_bytes().
struct KvMemory {
  Pages pages;
  std::uint8_t* data;
};

// Memory for activations; it grows to the largest call and is kept.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  struct Buffers;
  Buffers& buffers() noexcept { return *buffers_; }

 private:
  std::unique_ptr<Buffers> buffers_;
};

// Where to write the results; null: not wanted.
struct Results {
  float* logits = nullptr;       // [K, vocabulary]
  std::int64_t* best = nullptr;  // [K]: the most likely token, the lowest of equals
  // [K, top]: the logits of the most likely tokens, descending, and the tokens, the lowest first among equals. If a row
  // has fewer logits that are not NaN, NaN and token 0 fill the rest.
  std::int64_t top = 0;
  float* top_logits = nullptr;
  std::int64_t* top_tokens = nullptr;
};

// Computes the rows and writes the wanted results. A workspace serves one call at a time. Throws std::bad_alloc before
// anything is written.
void step(const Model& model, const KvMemory& memory, Workspace& workspace, const Rows& rows, const Results& results);

}  // namespace layercoop::decode
