// Small random models and their logits, for the programs that the sanitizers watch (`make sanitize`).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "decode/step.h"

namespace small {

using namespace layercoop;
using namespace layercoop::decode;

inline std::mt19937 generator(0);

inline std::vector<float> numbers(std::int64_t count, float around = 0.0f) {
  std::normal_distribution<float> normal(around, 0.2f);
  std::vector<float> made(static_cast<std::size_t>(count));
  for (float& number : made) number = normal(generator);
  return made;
}

inline Linear linear(Format format, std::int64_t rows, std::int64_t columns, bool bias) {
  auto matrix = std::make_shared<Matrix>(format, rows, columns);
  matrix->fill(0, rows, numbers(rows * columns).data(), Origin::fp32);
  return {matrix, bias ? numbers(rows) : std::vector<float>{}};
}

inline Norm norm(std::int64_t width) { return {numbers(width, 1.0f), 1e-5f}; }

struct Sizes {
  std::int64_t hidden, heads, kv_heads, width, inner, vocabulary;
};

inline Model make(const Sizes& sizes, Format format) {
  Model model;
  model.hidden = sizes.hidden;
  model.heads = sizes.heads;
  model.kv_heads = sizes.kv_heads;
  model.width = sizes.width;
  model.inner = sizes.inner;
  model.scale = 1.0f / std::sqrt(static_cast<float>(sizes.width));
  model.positions = 200;
  for (int rotary = 0; rotary < 2; ++rotary) {
    model.rotaries.push_back({numbers(200 * sizes.width / 2), numbers(200 * sizes.width / 2)});
  }
  for (int layer = 0; layer < 3; ++layer) {
    const bool rich = layer == 1;  // all that a block can have
    Block block;
    block.attention_norm = norm(sizes.hidden);
    block.qkv = linear(format, model.qkv_rows(), sizes.hidden, rich);
    block.output = linear(format, sizes.hidden, sizes.heads * sizes.width, rich);
    block.mlp_norm = norm(sizes.hidden);
    block.gate_up = linear(format, 2 * model.padded_inner(), sizes.hidden, rich);
    block.down = linear(format, sizes.hidden, sizes.inner, rich);
    if (rich) {
      block.query_norm = norm(sizes.width);
      block.key_norm = norm(sizes.width);
      block.after_attention = norm(sizes.hidden);
      block.after_mlp = norm(sizes.hidden);
      block.window = 9;
    }
    block.rotary = layer - 1;
    model.blocks.push_back(std::move(block));
  }
  model.head = linear(format, sizes.vocabulary, sizes.hidden, true);
  model.embedding = model.head.matrix;
  model.final_norm = norm(sizes.hidden);
  model.score_cap = 5.0f;
  model.logit_cap = 8.0f;
  return model;
}

// How a call is made: `step` with a model and a workspace.
using Call = std::function<void(const KvMemory&, const Rows&, const Results&)>;

// Two sequences, the second of which forks from the first before the last block; cut into calls of `piece` tokens.
inline std::vector<float> logits(const Model& model, KvFormat kv, std::int32_t tokens, std::int32_t piece,
                                 const Call& call) {
  const std::int32_t layers = 3;
  const std::int32_t width = (tokens + 15) / 16;
  const Pages pages(kv, model.kv_heads, model.width);
  std::vector<std::uint8_t> memory(static_cast<std::size_t>(2 * layers * width * pages.page_bytes()));
  std::vector<std::int32_t> tables(static_cast<std::size_t>(2 * layers * width));
  for (std::size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<std::int32_t>(i);
  // Keys and values of blocks before the fork are in the first sequence's pages.
  std::copy_n(tables.begin(), 2 * width, tables.begin() + layers * width);
  const std::uint8_t masks[] = {3, 3, 3, 3, 3, 1};
  std::vector<float> found;
  for (std::int32_t first = 0; first < tokens; first += piece) {
    const std::int32_t count = std::min(piece, tokens - first);
    std::vector<std::int32_t> token, position, sequence, parent, fork, wanted;
    for (std::int32_t s = 0; s < 2; ++s) {
      for (std::int32_t i = 0; i < count; ++i) {
        token.push_back((7 * (first + i)) % static_cast<std::int32_t>(model.vocabulary()));
        position.push_back(first + i);
        sequence.push_back(s);
        parent.push_back(s == 0 ? -1 : i);
        fork.push_back(s == 0 ? 0 : 2);
      }
    }
    for (std::int32_t i = 0; i < 2 * count; ++i) wanted.push_back(i);
    const Rows rows{2 * count,     2,           width, token.data(),  position.data(), sequence.data(),
                    parent.data(), fork.data(), masks, tables.data(), 2 * count,       wanted.data()};
    std::vector<float> out(static_cast<std::size_t>(2 * count * model.vocabulary()));
    Results results;
    results.logits = out.data();
    call({pages, memory.data()}, rows, results);
    // Once more, wanting only the last row of each sequence.
    const std::int32_t last[] = {count - 1, 2 * count - 1};
    Rows few = rows;
    few.n_wanted = 2;
    few.wanted = last;
    const auto top = std::min<std::int64_t>(3, model.vocabulary());
    std::vector<std::int64_t> best(2), tokens(static_cast<std::size_t>(2 * top));
    std::vector<float> logits(tokens.size());
    call({pages, memory.data()}, few, {nullptr, best.data(), top, logits.data(), tokens.data()});
    for (std::size_t i = 0; i < 2; ++i) {
      const float* row = out.data() + last[i] * model.vocabulary();
      const auto first_place = i * static_cast<std::size_t>(top);
      if (std::max_element(row, row + model.vocabulary()) - row != best[i] || tokens[first_place] != best[i] ||
          logits[first_place] != row[best[i]]) {
        std::fprintf(stderr, "decode: the best token is not that of the largest logit\n");
        std::exit(1);
      }
    }
    // The first sequence only: with another cut the two come in another order.
    found.insert(found.end(), out.begin(), out.begin() + count * model.vocabulary());
  }
  return found;
}

inline std::vector<float> logits(const Model& model, KvFormat kv, std::int32_t tokens, std::int32_t piece) {
  Workspace workspace;
  return logits(model, kv, tokens, piece, [&](const KvMemory& memory, const Rows& rows, const Results& results) {
    step(model, memory, workspace, rows, results);
  });
}

}  // namespace small
