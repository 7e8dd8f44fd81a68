// The slopes of attention, over the vectors that the including file has chosen.
//
// Queries are taken some at a time, one head after the other, so that what is held of a window grows with its tokens
// and not with their square. With P the softmax of the scores and d the slope of the result, of the queries at hand:
//
//     of_values += P' d,    of_scores = scale P o (d V' - rows(d . mixed)),
//     of_queries = of_scores K,    of_keys += of_scores' Q
#pragma once

#include <algorithm>
#include <cstdint>

#include "blocks/attention_impl.h"
#include "blocks/slopes.h"
#include "cpu/aligned.h"

namespace layercoop::blocks {
namespace {

using namespace simd;

// Queries whose scores are held at once: whole tiles.
constexpr std::int64_t kQueriesAtOnce = 8 * kTileRows;

// What is kept in cache for one key head of a window, in fp32. Rows and columns are padded to whole tiles and vectors;
// padding is never written out.
struct AttentionSlopesSpace {
  std::int64_t token_columns;
  std::int64_t width_columns;
  cpu::Aligned<float> keys;               // [tokens, width_columns]
  cpu::Aligned<float> transposed_keys;    // [width, token_columns]
  cpu::Aligned<float> transposed_values;  // [width, token_columns]
  cpu::Aligned<float> of_keys;            // [tokens, width_columns]
  cpu::Aligned<float> of_values;          // [tokens, width_columns]
  cpu::Aligned<float> queries;            // [kQueriesAtOnce, width_columns]
  cpu::Aligned<float> slopes;             // [kQueriesAtOnce, width_columns]
  cpu::Aligned<float> softmax;            // [kQueriesAtOnce, token_columns]
  cpu::Aligned<float> of_scores;          // [kQueriesAtOnce, token_columns]
  cpu::Aligned<float> row;                // [kTileRows, width_columns]

  AttentionSlopesSpace(std::int64_t tokens, std::int64_t width)
      : token_columns(round_up(round_up(tokens, kTileRows), kLanes)),
        width_columns(round_up(width, kLanes)),
        keys(size(tokens, width_columns)),
        transposed_keys(size(width, token_columns)),
        transposed_values(size(width, token_columns)),
        of_keys(size(round_up(tokens, kTileRows), width_columns)),
        of_values(size(round_up(tokens, kTileRows), width_columns)),
        queries(size(kQueriesAtOnce, width_columns)),
        slopes(size(kQueriesAtOnce, width_columns)),
        softmax(size(kQueriesAtOnce, token_columns)),
        of_scores(size(kQueriesAtOnce, token_columns)),
        row(size(kTileRows, width_columns)) {}

  static std::size_t size(std::int64_t rows, std::int64_t columns) { return static_cast<std::size_t>(rows * columns); }
};

// c[6, columns] += the transpose of a[depth, 6], times b[depth, columns].
LAYERCOOP_TARGET void add_transposed_product(const float* a, std::int64_t a_stride, const float* b,
                                             std::int64_t b_stride, std::int64_t depth, std::int64_t columns, float* c,
                                             std::int64_t c_stride) {
  product_tiles(a, {1, a_stride}, b, b_stride, depth, columns, c, c_stride, true);
}

// A row becomes column t of a matrix.
LAYERCOOP_INLINE void transpose_row(const float* row, std::int64_t width, std::int64_t t, std::int64_t columns,
                                    float* out) {
  for (std::int64_t j = 0; j < width; ++j) out[j * columns + t] = row[j];
}

// Keys and values of a window, and no slopes yet.
template <typename T>
LAYERCOOP_INLINE void begin_window(const AttentionSlopes<T>& work, const T* keys, std::int64_t columns,
                                   AttentionSlopesSpace& space) {
  const T* values = keys + work.kv_heads * work.width;
  for (std::int64_t t = 0; t < work.tokens; ++t) {
    float* key = space.keys.data() + t * space.width_columns;
    convert_row(keys + t * columns, work.width, key);
    transpose_row(key, work.width, t, space.token_columns, space.transposed_keys.data());
    convert_row(values + t * columns, work.width, space.row.data());
    transpose_row(space.row.data(), work.width, t, space.token_columns, space.transposed_values.data());
  }
  std::fill(space.of_keys.begin(), space.of_keys.end(), 0.0f);
  std::fill(space.of_values.begin(), space.of_values.end(), 0.0f);
}

// Of one row: scores become P, and the products d V' the slopes of the scores; both are 0 from `keys` on to
// `columns`. `along` is d . mixed.
LAYERCOOP_TARGET void softmax_slopes(float* scores, float* products, std::int64_t keys, std::int64_t columns,
                                     float scale, float along) {
  const float share = 1.0f / exponentials(scores, 0, 0, keys, columns, scale);
  for (std::int64_t j = 0; j < keys; j += kLanes) {
    const Floats16 p = Floats16::load(scores + j) * share;
    store(scores + j, p);
    store(products + j, p * ((Floats16::load(products + j) - along) * scale));
  }
  for (std::int64_t j = round_up(keys, kLanes); j < columns; j += kLanes) store(products + j, Floats16(0.0f));
}

// sum over j of a_j b_j
template <typename T>
LAYERCOOP_INLINE float dot(const float* a, const T* b, std::int64_t width) {
  Floats16 sum = 0.0f;
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const int n = lanes_left(j, width);
    sum = fma(read(a + j, n), read(b + j, n), sum);
  }
  return total(sum);
}

// `count` queries of one head from token `first` on, a multiple of kTileRows. `queries`, `slope`, `mixed` and `out` are
// where this head of the window begins.
template <typename T>
LAYERCOOP_INLINE void some_queries(const AttentionSlopes<T>& work, const T* queries, const T* slope, const T* mixed,
                                   std::int64_t first, std::int64_t count, std::int64_t columns, T* out,
                                   AttentionSlopesSpace& space) {
  const std::int64_t wide = space.width_columns;
  const std::int64_t tokens = space.token_columns;
  const std::int64_t result_columns = work.heads * work.width;
  for (std::int64_t i = 0; i < count; ++i) {
    convert_row(queries + (first + i) * columns, work.width, space.queries.data() + i * wide);
    convert_row(slope + (first + i) * result_columns, work.width, space.slopes.data() + i * wide);
  }
  for (std::int64_t at = 0; at < count; at += kTileRows) {
    const std::int64_t rows = std::min(kTileRows, count - at);
    const std::int64_t keys = first + at + rows;
    const std::int64_t key_columns = round_up(keys, kLanes);
    float* softmax = space.softmax.data() + at * tokens;
    float* of_scores = space.of_scores.data() + at * tokens;
    const float* given = space.slopes.data() + at * wide;
    product(space.queries.data() + at * wide, wide, space.transposed_keys.data(), tokens, work.width, key_columns,
            softmax, tokens);
    product(given, wide, space.transposed_values.data(), tokens, work.width, key_columns, of_scores, tokens);
    for (std::int64_t i = 0; i < rows; ++i) {
      const float along = dot(given + i * wide, mixed + (first + at + i) * result_columns, work.width);
      softmax_slopes(softmax + i * tokens, of_scores + i * tokens, first + at + i + 1, key_columns, work.scale, along);
    }
    product(of_scores, tokens, space.keys.data(), wide, keys, wide, space.row.data(), wide);
    for (std::int64_t i = 0; i < rows; ++i) {
      convert_row(space.row.data() + i * wide, work.width, out + (first + at + i) * columns);
    }
  }
  // A key gets nothing from queries before it, whose scores of it are not there.
  for (std::int64_t key = 0; key < first + count; key += kTileRows) {
    const std::int64_t from = std::max<std::int64_t>(0, key - first);
    const std::int64_t at = from * tokens + key;
    add_transposed_product(space.of_scores.data() + at, tokens, space.queries.data() + from * wide, wide, count - from,
                           wide, space.of_keys.data() + key * wide, wide);
    add_transposed_product(space.softmax.data() + at, tokens, space.slopes.data() + from * wide, wide, count - from,
                           wide, space.of_values.data() + key * wide, wide);
  }
}

template <typename T>
LAYERCOOP_TARGET void attention_slopes(const AttentionSlopes<T>& work, std::int64_t begin, std::int64_t end) {
  AttentionSlopesSpace space(work.tokens, work.width);
  const std::int64_t columns = (work.heads + 2 * work.kv_heads) * work.width;
  const std::int64_t result_columns = work.heads * work.width;
  const std::int64_t group = work.heads / work.kv_heads;
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t row = item / work.kv_heads * work.tokens;
    const std::int64_t kv_head = item % work.kv_heads;
    const std::int64_t key = row * columns + (work.heads + kv_head) * work.width;
    begin_window(work, work.qkv + key, columns, space);
    for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const std::int64_t query = row * columns + head * work.width;
      const std::int64_t result = row * result_columns + head * work.width;
      for (std::int64_t first = 0; first < work.tokens; first += kQueriesAtOnce) {
        some_queries(work, work.qkv + query, work.slope + result, work.mixed + result, first,
                     std::min(kQueriesAtOnce, work.tokens - first), columns, work.out + query, space);
      }
    }
    const std::int64_t value = key + work.kv_heads * work.width;
    for (std::int64_t t = 0; t < work.tokens; ++t) {
      convert_row(space.of_keys.data() + t * space.width_columns, work.width, work.out + key + t * columns);
      convert_row(space.of_values.data() + t * space.width_columns, work.width, work.out + value + t * columns);
    }
  }
}

}  // namespace
}  // namespace layercoop::blocks
