// Products of a few input rows with packed weights: one pass over a tile of weights serves them all.
//
// This file uses no threads, allocates nothing and takes no locks: the caller gives each of its threads a range of
// output rows. A row's results do not depend, bit for bit, on the other rows nor on how the outputs are divided.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/aligned.h"
#include "decode/matrix.h"

namespace layercoop::decode {

// What the kernels read of packed weights: tiles one after the other, and the number of rows in them.
struct PackedRows {
  const std::uint8_t* tiles;
  std::int64_t tile_bytes;
  std::int64_t rows;

  const std::uint8_t* tile(std::int64_t index) const noexcept { return tiles + index * tile_bytes; }
};

// What the kernels read of some input rows; which of the forms is there depends on the weights' format (Inputs).
struct InputRows {
  const float* values;
  const std::uint16_t* bf16;
  const std::int8_t* q;
  const float* scales;
  const std::int32_t* sums;  // of q, for each group
  std::int64_t stride;       // numbers from one row to the next; scales and sums are stride / kGroup apart
  std::int64_t rows;
  std::int64_t groups;
};

// Input rows and the forms in which products read them. Written by one thread, read by any number afterwards:
//
//     Inputs inputs(16, 1536);                       // once
//     for each row r: write columns numbers to inputs.row(r);
//     inputs.prepare(rows, columns, matrix.format());  // for each format that reads them; int8 and int4 read the same
//     multiply(matrix, inputs, out, stride, begin, end);
class Inputs {
 public:
  // Room for that many rows and columns; at least 0.
  Inputs(std::int64_t max_rows, std::int64_t max_columns);

  // Where to write row r, r < max_rows: on a cache line, with room for max_columns numbers.
  float* row(std::int64_t r) noexcept { return values_.data() + r * stride_; }
  const float* row(std::int64_t r) const noexcept { return values_.data() + r * stride_; }

  // Fills the padding of the first `rows` rows, and computes the form that weights of this format are multiplied with:
  // for int8 and int4 the input quantised to int8, x = scale * q with scale = largest / 127 for each group of kGroup
  // columns; for bf16 the input rounded to bf16, if the machine's dot products take that.
  void prepare(std::int64_t rows, std::int64_t columns, Format format);

  std::int64_t max_rows() const noexcept { return max_rows_; }
  std::int64_t max_columns() const noexcept { return max_columns_; }

  InputRows prepared() const noexcept {
    return {values_.data(), bf16_.data(), q_.data(), scales_.data(), sums_.data(), stride_, rows_, groups_};
  }

 private:
  std::int64_t max_rows_;
  std::int64_t max_columns_;
  std::int64_t stride_;
  std::int64_t rows_ = 0;
  std::int64_t columns_ = 0;
  std::int64_t groups_ = 0;
  cpu::Aligned<float> values_;
  cpu::Aligned<std::uint16_t> bf16_;
  cpu::Aligned<std::int8_t> q_;
  std::vector<float> scales_;
  std::vector<std::int32_t> sums_;
};

// out[r * out_stride + i] = sum_k x[r, k] w[i, k] for every row r of the inputs (any number; fastest for 1 to 16) and
// the outputs i of [begin, end). `begin` is a multiple of kTile; `end` is one too, or matrix.rows(). The inputs must
// have matrix.columns() columns and be prepared for the matrix's format under the instruction set in force.
void multiply(const Matrix& matrix, const Inputs& inputs, float* out, std::int64_t out_stride, std::int64_t begin,
              std::int64_t end);

// The outputs [begin, end) of part `part`, if whole tiles are divided into `parts` almost equal parts.
std::pair<std::int64_t, std::int64_t> share(std::int64_t rows, std::int64_t part, std::int64_t parts) noexcept;

}  // namespace layercoop::decode
