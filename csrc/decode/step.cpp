#include "decode/step.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/pool.h"
#include "cpu/team.h"
#include "decode/buffers.h"
#include "decode/top.h"

namespace layercoop::decode {
namespace {

// Bytes of weights that all tiles of rows of a large call use before the next weights: they stay in a core's cache.
constexpr std::int64_t kWeightsAtOnce = 1 << 17;

// Some rows of the call, ascending. Row rows[a] has index a in the buffers.
struct List {
  const std::int32_t* rows;
  std::int64_t count;
};

// One call. Every member of the team runs `work`. Between two barriers each writes only its own share.
class Pass {
 public:
  Pass(const Model& model, const KvMemory& memory, Workspace::Buffers& buffers, const Rows& call, std::int64_t chunks,
       const Results& results)
      : model_(model),
        memory_(memory),
        kernels_(row_kernels()),
        buffers_(buffers),
        call_(call),
        chunks_(chunks),
        results_(results),
        small_(call.rows <= kTileRows),
        group_(model.heads / model.kv_heads),
        padded_width_(memory.pages.padded_width()) {}

  void work(cpu::Member& member) noexcept;

 private:
  // A member, and what the last half of a block computed for some rows and is not yet added to their states.
  struct Hand {
    cpu::Member& member;
    Private& own;
    List pending{nullptr, 0};
    const Norm* pending_norm = nullptr;
  };

  List list(std::size_t layer, std::size_t part) const {
    const std::size_t at = kParts * layer + part;
    const std::size_t begin = buffers_.starts[at];
    return {buffers_.rows.data() + begin, static_cast<std::int64_t>(buffers_.starts[at + 1] - begin)};
  }
  float* state(Hand& hand, std::int64_t row) const {
    return (small_ ? hand.own.x.data() : buffers_.x.data()) + row * model_.hidden;
  }
  // In a small call every member keeps all states; otherwise members take tiles of rows in turn.
  bool keeps(const Hand& hand, std::int64_t row) const {
    return small_ || row / kTileRows % hand.member.count() == hand.member.index();
  }
  Inputs& inputs(Hand& hand, std::int64_t place) const {
    return small_ ? hand.own.inputs : *buffers_.tiles[static_cast<std::size_t>(place / kTileRows)];
  }

  void embed(Hand& hand) const;
  void fork(Hand& hand, const List& rows) const;
  void add_pending(Hand& hand) const;
  void norm_inputs(Hand& hand, const List& rows, const Norm& norm, Format format) const;
  void prepare(Hand& hand, Tiles& tiles, std::int64_t rows, std::int64_t columns, Format format) const;
  void product(Hand& hand, const Tiles* tiles, std::int64_t rows, const Linear& linear, float* out) const;
  void attention(Hand& hand, std::size_t layer, const List& all, const List& rows) const;
  void gather_queries(Hand& hand, const List& all, const List& rows) const;
  void place_heads(Hand& hand, std::size_t layer, const List& rows) const;
  void attend_split(Hand& hand, std::size_t layer, const List& rows) const;
  void gather_split(Hand& hand, const Block& block, const List& rows) const;
  void attend_whole(Hand& hand, std::size_t layer, const List& rows) const;
  void mlp(Hand& hand, const Block& block, const List& rows) const;
  void head(Hand& hand) const;
  void choose(std::int64_t first, std::int64_t count, int members) const;
  void choose_top(std::int64_t first, std::int64_t count, int members) const;

  std::uint8_t* page(std::int64_t row, std::size_t layer, std::int64_t position) const {
    const std::int64_t at =
        (call_.sequence[row] * static_cast<std::int64_t>(model_.blocks.size()) + static_cast<std::int64_t>(layer)) *
            call_.table_width +
        position / kPage;
    return memory_.data + call_.tables[at] * memory_.pages.page_bytes();
  }
  std::int64_t first_seen(const Block& block, std::int64_t row) const {
    return block.window > 0 ? std::max<std::int64_t>(0, call_.positions[row] - block.window + 1) : 0;
  }
  const float* query(std::int64_t place, std::int64_t head) const {
    return buffers_.qkv.data() + place * model_.qkv_rows() + head * model_.width;
  }
  void begin_chunk(Chunk& chunk, std::int64_t row, std::size_t layer, std::int64_t number, std::int64_t kv_head,
                   std::int64_t last_position) const;
  void attend(const Chunk& chunk) const;

  const Model& model_;
  const KvMemory& memory_;
  const RowKernels& kernels_;
  Workspace::Buffers& buffers_;
  const Rows& call_;
  const std::int64_t chunks_;
  const Results& results_;
  const bool small_;
  const std::int64_t group_;
  const std::int64_t padded_width_;
};

void Pass::work(cpu::Member& member) noexcept {
  Hand hand{member, *buffers_.own[static_cast<std::size_t>(member.index())]};
  embed(hand);
  for (std::size_t layer = 0; layer < model_.blocks.size(); ++layer) {
    if (const List rows = list(layer, kForks); rows.count > 0) fork(hand, rows);
    if (const List rows = list(layer, kKeys); rows.count > 0) attention(hand, layer, rows, list(layer, kAttends));
    if (const List rows = list(layer, kMlps); rows.count > 0) mlp(hand, model_.blocks[layer], rows);
  }
  add_pending(hand);
  if (!small_) member.barrier();
  head(hand);
}

void Pass::embed(Hand& hand) const {
  for (std::int64_t row = 0; row < call_.rows; ++row) {
    if (call_.parent[row] >= 0 || !keeps(hand, row)) continue;
    float* const x = state(hand, row);
    model_.embedding->unpack(call_.tokens[row], 1, x, model_.hidden);
    if (model_.embedding_scale != 1.0f) kernels_.scale_and_cap(model_.embedding_scale, 0.0f, model_.hidden, x);
  }
}

// Copies the states of parents, which another member may keep, to these rows.
void Pass::fork(Hand& hand, const List& rows) const {
  add_pending(hand);
  if (!small_) hand.member.barrier();
  for (std::int64_t a = 0; a < rows.count; ++a) {
    const std::int64_t row = rows.rows[a];
    if (keeps(hand, row)) std::memcpy(state(hand, row), state(hand, call_.parent[row]), 4 * model_.hidden);
  }
  if (!small_) hand.member.barrier();
}

void Pass::add_pending(Hand& hand) const {
  for (std::int64_t a = 0; a < hand.pending.count; ++a) {
    const std::int64_t row = hand.pending.rows[a];
    if (!keeps(hand, row)) continue;
    const float* delta = buffers_.delta.data() + a * model_.hidden;
    if (!hand.pending_norm->weight.empty()) {
      kernels_.rms_norm(delta, hand.pending_norm->weight.data(), hand.pending_norm->eps, model_.hidden,
                        hand.own.space.data());
      delta = hand.own.space.data();
    }
    kernels_.add(delta, model_.hidden, state(hand, row));
  }
  hand.pending.count = 0;
}

// The up-to-date states of the rows, normed, as inputs of a product.
void Pass::norm_inputs(Hand& hand, const List& rows, const Norm& norm, Format format) const {
  add_pending(hand);
  for (std::int64_t a = 0; a < rows.count; ++a) {
    const std::int64_t row = rows.rows[a];
    if (!keeps(hand, row)) continue;
    kernels_.rms_norm(state(hand, row), norm.weight.data(), norm.eps, model_.hidden,
                      inputs(hand, a).row(a % kTileRows));
  }
  if (!small_) hand.member.barrier();
  prepare(hand, buffers_.tiles, rows.count, model_.hidden, format);
}

void Pass::prepare(Hand& hand, Tiles& tiles, std::int64_t rows, std::int64_t columns, Format format) const {
  if (small_) return hand.own.inputs.prepare(rows, columns, format);
  for (std::int64_t tile = hand.member.index(); tile * kTileRows < rows; tile += hand.member.count()) {
    tiles[static_cast<std::size_t>(tile)]->prepare(std::min(kTileRows, rows - tile * kTileRows), columns, format);
  }
  hand.member.barrier();
}

// Computes this member's share of the outputs of all rows, out [rows, matrix.rows()]. Without tiles, and in small
// calls, the inputs are the member's own.
void Pass::product(Hand& hand, const Tiles* tiles, std::int64_t rows, const Linear& linear, float* out) const {
  const Matrix& matrix = *linear.matrix;
  const std::int64_t stride = matrix.rows();
  const auto [begin, end] = share(stride, hand.member.index(), hand.member.count());
  if (begin == end) return;
  if (small_ || tiles == nullptr) {
    multiply(matrix, hand.own.inputs, out, stride, begin, end);
  } else {
    const std::int64_t at_once = std::max<std::int64_t>(1, kWeightsAtOnce / matrix.tile_bytes()) * kTile;
    for (std::int64_t from = begin; from < end; from += at_once) {
      const std::int64_t to = std::min(end, from + at_once);
      for (std::int64_t first = 0; first < rows; first += kTileRows) {
        multiply(matrix, *(*tiles)[static_cast<std::size_t>(first / kTileRows)], out + first * stride, stride, from,
                 to);
      }
    }
  }
  if (linear.bias.empty()) return;
  for (std::int64_t a = 0; a < rows; ++a)
    kernels_.add(linear.bias.data() + begin, end - begin, out + a * stride + begin);
}

// `all` rows store keys and values; `rows`, which are some of them in the same order, attend.
void Pass::attention(Hand& hand, std::size_t layer, const List& all, const List& rows) const {
  const Block& block = model_.blocks[layer];
  norm_inputs(hand, all, block.attention_norm, block.qkv.matrix->format());
  product(hand, &buffers_.tiles, all.count, block.qkv, buffers_.qkv.data());
  hand.member.barrier();
  place_heads(hand, layer, all);
  hand.member.barrier();
  if (rows.count == 0) return;
  if (rows.count < all.count) gather_queries(hand, all, rows);
  if (small_) {
    attend_split(hand, layer, rows);
    hand.member.barrier();
    gather_split(hand, block, rows);
  } else {
    attend_whole(hand, layer, rows);
    hand.member.barrier();
  }
  prepare(hand, buffers_.tiles, rows.count, model_.heads * model_.width, block.output.matrix->format());
  product(hand, &buffers_.tiles, rows.count, block.output, buffers_.delta.data());
  hand.member.barrier();
  hand.pending = rows;
  hand.pending_norm = &block.after_attention;
}

// The queries of `rows` to the places that they have among themselves.
void Pass::gather_queries(Hand& hand, const List& all, const List& rows) const {
  if (hand.member.index() == 0) {
    for (std::int64_t from = 0, to = 0; to < rows.count; ++from) {
      if (all.rows[from] != rows.rows[to]) continue;
      float* const qkv = buffers_.qkv.data();
      if (from != to) {
        std::memcpy(qkv + to * model_.qkv_rows(), qkv + from * model_.qkv_rows(), 4 * model_.heads * model_.width);
      }
      ++to;
    }
  }
  hand.member.barrier();
}

// Norms and turns queries and keys, and writes keys and values to their pages.
void Pass::place_heads(Hand& hand, std::size_t layer, const List& rows) const {
  const Block& block = model_.blocks[layer];
  const std::int64_t width = model_.width;
  const std::int64_t items = rows.count * (model_.heads + model_.kv_heads);
  const std::int64_t begin = items * hand.member.index() / hand.member.count();
  const std::int64_t end = items * (hand.member.index() + 1) / hand.member.count();
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t a = item / (model_.heads + model_.kv_heads);
    const std::int64_t head = item % (model_.heads + model_.kv_heads);
    const std::int64_t row = rows.rows[a];
    const std::int64_t position = call_.positions[row];
    float* const x = buffers_.qkv.data() + a * model_.qkv_rows() + head * width;
    const Norm& norm = head < model_.heads ? block.query_norm : block.key_norm;
    if (!norm.weight.empty()) kernels_.rms_norm(x, norm.weight.data(), norm.eps, width, x);
    if (block.rotary >= 0) {
      const Rotary& rotary = model_.rotaries[static_cast<std::size_t>(block.rotary)];
      const std::int64_t at = position * (width / 2);
      kernels_.rotate(rotary.cos.data() + at, rotary.sin.data() + at, width, x);
    }
    if (head >= model_.heads) {
      memory_.pages.store(kernels_, page(row, layer, position), head - model_.heads, position % kPage, x,
                          x + model_.kv_heads * width, hand.own.space.data());
    }
  }
}

void Pass::begin_chunk(Chunk& chunk, std::int64_t row, std::size_t layer, std::int64_t number, std::int64_t kv_head,
                       std::int64_t last_position) const {
  const Pages& pages = memory_.pages;
  for (std::int64_t i = 0; i < kChunk / kPage; ++i) {
    const std::int64_t position = number * kChunk + i * kPage;
    if (position > last_position) break;
    std::uint8_t* const at = page(row, layer, position);
    chunk.keys[i] = pages.keys(at, kv_head);
    chunk.values[i] = pages.values(at, kv_head);
    float* const scales = pages.scales(at, kv_head);
    chunk.key_scales[i] = scales;
    chunk.value_scales[i] = scales == nullptr ? nullptr : scales + kPage;
  }
  chunk.width = model_.width;
  chunk.padded_width = padded_width_;
  chunk.scale = model_.scale;
  chunk.cap = model_.score_cap;
  chunk.queries = 0;
}

void Pass::attend(const Chunk& chunk) const {
  switch (memory_.pages.format()) {
    case KvFormat::fp32: return kernels_.attend_fp32(chunk);
    case KvFormat::bf16: return kernels_.attend_bf16(chunk);
    case KvFormat::fp16: return kernels_.attend_fp16(chunk);
    case KvFormat::int8: return kernels_.attend_int8(chunk);
  }
}

// Few rows: row, key head and chunk of keys go round among the members, and what they find is put together behind a
// barrier, in the order of the chunks.
void Pass::attend_split(Hand& hand, std::size_t layer, const List& rows) const {
  const Block& block = model_.blocks[layer];
  std::int64_t item = 0;
  for (std::int64_t a = 0; a < rows.count; ++a) {
    const std::int64_t row = rows.rows[a];
    const std::int64_t position = call_.positions[row];
    const std::int64_t first = first_seen(block, row);
    for (std::int64_t number = first / kChunk; number * kChunk <= position; ++number) {
      for (std::int64_t kv_head = 0; kv_head < model_.kv_heads; ++kv_head) {
        if (item++ % hand.member.count() != hand.member.index()) continue;
        Chunk chunk;
        begin_chunk(chunk, row, layer, number, kv_head, position);
        for (std::int64_t from = 0; from < group_; from += kQueries) {
          chunk.queries = static_cast<int>(std::min<std::int64_t>(kQueries, group_ - from));
          for (int i = 0; i < chunk.queries; ++i) {
            const std::int64_t head = kv_head * group_ + from + i;
            const std::int64_t at = (a * model_.heads + head) * chunks_ + number;
            chunk.query[i] = query(a, head);
            chunk.first[i] = static_cast<int>(std::max<std::int64_t>(0, first - number * kChunk));
            chunk.last[i] = static_cast<int>(std::min(kChunk, position + 1 - number * kChunk));
            Partial& partial = buffers_.partial[static_cast<std::size_t>(at)];
            chunk.largest[i] = &partial.largest;
            chunk.sum[i] = &partial.sum;
            chunk.out[i] = buffers_.partial_out.data() + at * padded_width_;
          }
          attend(chunk);
        }
      }
    }
  }
}

void Pass::gather_split(Hand& hand, const Block& block, const List& rows) const {
  for (std::int64_t a = 0; a < rows.count; ++a) {
    const std::int64_t row = rows.rows[a];
    const std::int64_t position = call_.positions[row];
    for (std::int64_t head = 0; head < model_.heads; ++head) {
      Partial total{0.0f, 0.0f};
      float* const out = hand.own.total_out.data();
      for (std::int64_t number = first_seen(block, row) / kChunk; number * kChunk <= position; ++number) {
        const std::int64_t at = (a * model_.heads + head) * chunks_ + number;
        const Partial& partial = buffers_.partial[static_cast<std::size_t>(at)];
        kernels_.merge(partial.largest, partial.sum, buffers_.partial_out.data() + at * padded_width_, padded_width_,
                       &total.largest, &total.sum, out);
      }
      float* const to = hand.own.inputs.row(a) + head * model_.width;
      for (std::int64_t d = 0; d < model_.width; ++d) to[d] = out[d] / total.sum;
    }
  }
}

// Many rows: pieces of up to kTileRows rows of one sequence and a key head go round among the members. A piece takes
// the chunks in their order, each while it is in cache.
void Pass::attend_whole(Hand& hand, std::size_t layer, const List& rows) const {
  const Block& block = model_.blocks[layer];
  std::int64_t item = 0;
  for (std::int64_t begin = 0, end = 0; begin < rows.count; begin = end) {
    const std::int32_t sequence = call_.sequence[rows.rows[begin]];
    end = begin + 1;
    while (end < rows.count && end - begin < kTileRows && call_.sequence[rows.rows[end]] == sequence) ++end;
    const std::int64_t last_row = rows.rows[end - 1];
    const std::int64_t last_position = call_.positions[last_row];
    const std::int64_t queries = (end - begin) * group_;
    for (std::int64_t kv_head = 0; kv_head < model_.kv_heads; ++kv_head) {
      if (item++ % hand.member.count() != hand.member.index()) continue;
      std::fill_n(hand.own.total.begin(), queries, Partial{0.0f, 0.0f});
      const std::int64_t first_chunk = first_seen(block, rows.rows[begin]) / kChunk;
      for (std::int64_t number = first_chunk; number * kChunk <= last_position; ++number) {
        Chunk chunk;
        begin_chunk(chunk, last_row, layer, number, kv_head, last_position);
        for (std::int64_t from = 0; from < queries; from += kQueries) {
          chunk.queries = static_cast<int>(std::min<std::int64_t>(kQueries, queries - from));
          for (int i = 0; i < chunk.queries; ++i) {
            const std::int64_t at = from + i;
            const std::int64_t a = begin + at / group_;
            const std::int64_t row = rows.rows[a];
            chunk.query[i] = query(a, kv_head * group_ + at % group_);
            const auto seen = [&](std::int64_t position) {
              return static_cast<int>(std::clamp<std::int64_t>(position - number * kChunk, 0, kChunk));
            };
            chunk.first[i] = seen(first_seen(block, row));
            chunk.last[i] = seen(call_.positions[row] + 1);
            Partial& partial = hand.own.found[static_cast<std::size_t>(at)];
            chunk.largest[i] = &partial.largest;
            chunk.sum[i] = &partial.sum;
            chunk.out[i] = hand.own.found_out.data() + at * padded_width_;
          }
          attend(chunk);
        }
        for (std::int64_t at = 0; at < queries; ++at) {
          const Partial& found = hand.own.found[static_cast<std::size_t>(at)];
          Partial& total = hand.own.total[static_cast<std::size_t>(at)];
          kernels_.merge(found.largest, found.sum, hand.own.found_out.data() + at * padded_width_, padded_width_,
                         &total.largest, &total.sum, hand.own.total_out.data() + at * padded_width_);
        }
      }
      for (std::int64_t at = 0; at < queries; ++at) {
        const std::int64_t a = begin + at / group_;
        const float* const out = hand.own.total_out.data() + at * padded_width_;
        const float sum = hand.own.total[static_cast<std::size_t>(at)].sum;
        float* const to = inputs(hand, a).row(a % kTileRows) + (kv_head * group_ + at % group_) * model_.width;
        for (std::int64_t d = 0; d < model_.width; ++d) to[d] = out[d] / sum;
      }
    }
  }
}

// A member multiplies pairs of tiles, gate and up of the same sixteen numbers, and needs no barrier to join them.
void Pass::mlp(Hand& hand, const Block& block, const List& rows) const {
  const Matrix& gate_up = *block.gate_up.matrix;
  const std::int64_t padded = model_.padded_inner();
  norm_inputs(hand, rows, block.mlp_norm, gate_up.format());
  const auto [begin, end] = share(padded, hand.member.index(), hand.member.count());
  const std::int64_t at_once = small_ ? std::max<std::int64_t>(1, end - begin)
                                      : std::max<std::int64_t>(1, kWeightsAtOnce / (2 * gate_up.tile_bytes())) * kTile;
  float* const wide = small_ ? buffers_.gate_up.data() : hand.own.wide.data();
  for (std::int64_t from = begin; from < end; from += at_once) {
    const std::int64_t to = std::min(end, from + at_once);
    for (std::int64_t first = 0; first < rows.count; first += kTileRows) {
      multiply(gate_up, inputs(hand, first), wide, 2 * padded, 2 * from, 2 * to);
      for (std::int64_t a = first; a < std::min(rows.count, first + kTileRows); ++a) {
        float* const row = wide + (a - first) * 2 * padded + 2 * from;
        if (!block.gate_up.bias.empty()) kernels_.add(block.gate_up.bias.data() + 2 * from, 2 * (to - from), row);
        float* const inner = small_ ? buffers_.inner.data() + a * padded
                                    : buffers_.inner_tiles[static_cast<std::size_t>(a / kTileRows)]->row(a % kTileRows);
        kernels_.gated(row, model_.activation, to - from, inner + from);
      }
    }
  }
  hand.member.barrier();
  if (small_) {
    for (std::int64_t a = 0; a < rows.count; ++a) {
      std::memcpy(hand.own.inputs.row(a), buffers_.inner.data() + a * padded, 4 * padded);
    }
  }
  prepare(hand, buffers_.inner_tiles, rows.count, model_.inner, block.down.matrix->format());
  product(hand, &buffers_.inner_tiles, rows.count, block.down, buffers_.delta.data());
  hand.member.barrier();
  hand.pending = rows;
  hand.pending_norm = &block.after_mlp;
}

void Pass::head(Hand& hand) const {
  const std::int64_t vocabulary = model_.vocabulary();
  const auto [begin, end] = share(vocabulary, hand.member.index(), hand.member.count());
  for (std::int64_t first = 0; first < call_.n_wanted; first += kTileRows) {
    const std::int64_t count = std::min(kTileRows, call_.n_wanted - first);
    float* const out = results_.logits == nullptr ? buffers_.logits.data() : results_.logits + first * vocabulary;
    for (std::int64_t a = 0; a < count; ++a) {
      kernels_.rms_norm(state(hand, call_.wanted[first + a]), model_.final_norm.weight.data(), model_.final_norm.eps,
                        model_.hidden, hand.own.inputs.row(a));
    }
    hand.own.inputs.prepare(count, model_.hidden, model_.head.matrix->format());
    product(hand, nullptr, count, model_.head, out);
    for (std::int64_t a = 0; a < count; ++a) {
      float* const row = out + a * vocabulary + begin;
      if (model_.logit_scale != 1.0f || model_.logit_cap != 0.0f) {
        kernels_.scale_and_cap(model_.logit_scale, model_.logit_cap, end - begin, row);
      }
      if (results_.best != nullptr && begin < end) {
        const std::int64_t token = kernels_.largest(row, end - begin);
        hand.own.best[a] = row[token];
        hand.own.best_token[a] = begin + token;
      }
      if (results_.top > 0) {
        std::int64_t* const top_tokens = hand.own.top_tokens.data() + a * results_.top;
        const std::int64_t found =
            top(kernels_, row, end - begin, results_.top, hand.own.top_logits.data() + a * results_.top, top_tokens);
        for (std::int64_t i = 0; i < found; ++i) top_tokens[i] += begin;
        hand.own.top_count[a] = found;
      }
    }
    if (results_.best == nullptr && results_.top == 0) continue;
    hand.member.barrier();
    if (hand.member.index() == 0) {
      if (results_.best != nullptr) choose(first, count, hand.member.count());
      choose_top(first, count, hand.member.count());
    }
    hand.member.barrier();
  }
}

// Chooses among the best tokens of the members' shares, lowest tokens first.
void Pass::choose(std::int64_t first, std::int64_t count, int members) const {
  for (std::int64_t a = 0; a < count; ++a) {
    const Private* most = nullptr;
    for (int i = 0; i < members; ++i) {
      const auto [begin, end] = share(model_.vocabulary(), i, members);
      const Private& other = *buffers_.own[static_cast<std::size_t>(i)];
      if (begin < end && (most == nullptr || other.best[a] > most->best[a])) most = &other;
    }
    results_.best[first + a] = most->best_token[a];
  }
}

// Merges the members' lists of most likely tokens, each in descending order of logits.
void Pass::choose_top(std::int64_t first, std::int64_t count, int members) const {
  const std::int64_t n = results_.top;
  std::vector<std::int64_t>& next = buffers_.next;
  for (std::int64_t a = 0; a < count; ++a) {
    std::fill(next.begin(), next.end(), a * n);
    for (std::int64_t i = (first + a) * n; i < (first + a + 1) * n; ++i) {
      int from = -1;
      float most = std::numeric_limits<float>::quiet_NaN();
      for (int member = 0; member < members; ++member) {
        const Private& own = *buffers_.own[static_cast<std::size_t>(member)];
        const std::int64_t at = next[static_cast<std::size_t>(member)];
        if (at - a * n == own.top_count[a]) continue;
        const float value = own.top_logits[static_cast<std::size_t>(at)];
        if (from < 0 || value > most) {
          most = value;
          from = member;
        }
      }
      results_.top_logits[i] = most;
      results_.top_tokens[i] = 0;
      if (from < 0) continue;
      const std::int64_t at = next[static_cast<std::size_t>(from)]++;
      results_.top_tokens[i] = buffers_.own[static_cast<std::size_t>(from)]->top_tokens[static_cast<std::size_t>(at)];
    }
  }
}

}  // namespace

void step(const Model& model, const KvMemory& memory, Workspace& workspace, const Rows& rows, const Results& results) {
  if (rows.rows == 0) return;
  const std::int64_t last = *std::max_element(rows.positions, rows.positions + rows.rows);
  const std::int64_t chunks = last / kChunk + 1;
  const int threads = cpu::num_threads();
  Workspace::Buffers& buffers = workspace.buffers();
  buffers.grow(model, memory.pages, rows, chunks, threads, results);
  Pass pass(model, memory, buffers, rows, chunks, results);
  cpu::run_team(threads, [&pass](cpu::Member& member) { pass.work(member); });
}

}  // namespace layercoop::decode
