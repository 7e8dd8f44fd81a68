// One call = the tokens of one step, or of a piece of a prompt: from embedding to logits without coming back in
// between.
//
// Rows are tokens of one or several sequences, each sequence under its own mask. A block, or a half of one, runs once
// for the rows that keep it. All threads of cpu/team work through the blocks together. A row's results do not depend on
// the number of threads nor, bit for bit, on the rows beside it.
#pragma once

#include <cstdint>
#include <memory>

#include "decode/model.h"
#include "decode/pages.h"

namespace layercoop::decode {

// Halves of a block, as bits of a mask.
constexpr std::uint8_t kAttention = 1;
constexpr std::uint8_t kMlp = 2;

// What to compute. Shapes and values are the caller's to check (bind_decode.cpp does).
struct Rows {
  std::int64_t rows;              // R
  std::int64_t sequences;         // S
  std::int64_t table_width;       // P
  const std::int32_t* tokens;     // [R]
  const std::int32_t* positions;  // [R]; the rows of a sequence stand together, at consecutive positions
  const std::int32_t* sequence;   // [R]
  const std::int32_t* parent;     // [R]: an earlier row, or below 0
  const std::int32_t* fork;       // [R]: where there is a parent, the row takes over its state before this block
  const std::uint8_t* masks;      // [S, L]
  const std::int32_t* tables;     // [S, L, P]: page of positions kPage * p and up
  std::int64_t n_wanted;          // K
  const std::int32_t* wanted;     // [K]
};

// Where keys and values lie: page i begins at data + i * pages.page_bytes().
struct KvMemory {
  Pages pages;
  std::uint8_t* data;
};

// Memory for activations, grown to the largest call and kept.
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

// What is wanted of the rows, where it is not null.
struct Results {
  float* logits = nullptr;       // [K, words]
  std::int64_t* best = nullptr;  // [K]: the first of the likeliest words
  // [K, top]: of the likeliest words their logits, descending, and their numbers, the lowest first of equals. Where a
  // row has fewer logits that are numbers, NaN and word 0 follow.
  std::int64_t top = 0;
  float* top_logits = nullptr;
  std::int64_t* top_words = nullptr;
};

// Computes the rows, and writes what is wanted. A workspace serves one call at a time. Throws std::bad_alloc before
// anything is written.
void step(const Model& model, const KvMemory& memory, Workspace& workspace, const Rows& rows, const Results& results);

}  // namespace layercoop::decode
