#include "decode/buffers.h"

#include <algorithm>

namespace layercoop::decode {
namespace {

std::int64_t widest(const Model& model) {
  return std::max({model.hidden, model.heads * model.width, model.padded_inner()});
}

template <typename Vector>
void at_least(Vector& vector, std::int64_t size) {
  if (vector.size() < static_cast<std::size_t>(size)) vector.resize(static_cast<std::size_t>(size));
}

void at_least(Tiles& tiles, std::int64_t rows, std::int64_t columns) {
  while (static_cast<std::int64_t>(tiles.size()) * kTileRows < rows) {
    tiles.push_back(std::make_unique<Inputs>(kTileRows, columns));
  }
}

}  // namespace

Private::Private(const Model& model, std::int64_t padded_width) : inputs(kTileRows, widest(model)) {
  const std::int64_t queries = kTileRows * (model.heads / model.kv_heads);
  at_least(x, kTileRows * model.hidden);
  at_least(wide, kTileRows * 2 * model.padded_inner());
  at_least(space, std::max(model.hidden, padded_width));
  at_least(found, queries);
  at_least(total, queries);
  at_least(found_out, queries * padded_width);
  at_least(total_out, queries * padded_width);
}

void Workspace::Buffers::grow(const Model& model, const Pages& pages, const Rows& call, std::int64_t chunks,
                              int threads, const Results& results) {
  while (own.size() < static_cast<std::size_t>(threads)) {
    own.push_back(std::make_unique<Private>(model, pages.padded_width()));
  }
  at_least(next, threads);
  for (const std::unique_ptr<Private>& each : own) {
    at_least(each->top_logits, kTileRows * results.top);
    at_least(each->top_tokens, kTileRows * results.top);
  }
  const std::int64_t count = call.rows;
  at_least(qkv, count * model.qkv_rows());
  at_least(delta, count * model.hidden);
  if (count <= kTileRows) {
    at_least(partial, count * model.heads * chunks);
    at_least(partial_out, count * model.heads * chunks * pages.padded_width());
    at_least(gate_up, count * 2 * model.padded_inner());
    at_least(inner, count * model.padded_inner());
  } else {
    at_least(x, count * model.hidden);
    at_least(tiles, count, std::max(model.hidden, model.heads * model.width));
    at_least(inner_tiles, count, model.padded_inner());
  }
  if (results.logits == nullptr) at_least(logits, std::min(call.n_wanted, kTileRows) * model.vocabulary());

  list_rows(static_cast<std::int64_t>(model.blocks.size()), call);
}

void Workspace::Buffers::list_rows(std::int64_t layers, const Rows& call) {
  const std::int64_t count = call.rows;
  const auto keeps = [&](std::int64_t row, std::int64_t layer, std::uint8_t half) {
    return (call.masks[call.sequence[row] * layers + layer] & half) != 0;
  };
  needed.assign(static_cast<std::size_t>(count), 0);
  for (std::int64_t row = 0; row < count; ++row) {
    std::int64_t& own = needed[static_cast<std::size_t>(row)];
    for (std::int64_t layer = layers - 1; layer > own; --layer) {
      if (keeps(row, layer, kAttention)) own = layer;
    }
    if (call.parent[row] < 0) continue;
    std::int64_t& parents = needed[static_cast<std::size_t>(call.parent[row])];
    parents = std::max<std::int64_t>(parents, call.fork[row]);
  }
  for (std::int64_t i = 0; i < call.n_wanted; ++i) needed[static_cast<std::size_t>(call.wanted[i])] = layers;

  rows.clear();
  starts.assign(1, 0);
  const auto does = [&](std::int32_t row, std::int64_t layer, std::size_t part) {
    const bool forked = call.parent[row] >= 0;
    if (part == kForks) return forked && call.fork[row] == layer;
    if (!keeps(row, layer, part == kMlps ? kMlp : kAttention) || (forked && call.fork[row] > layer)) return false;
    return part == kKeys || layer < needed[static_cast<std::size_t>(row)];
  };
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    for (std::size_t part = 0; part < kParts; ++part) {
      for (std::int32_t row = 0; row < count; ++row) {
        if (does(row, layer, part)) rows.push_back(row);
      }
      starts.push_back(rows.size());
    }
  }
}

Workspace::Workspace() : buffers_(std::make_unique<Buffers>()) {}
Workspace::~Workspace() = default;

}  // namespace layercoop::decode
