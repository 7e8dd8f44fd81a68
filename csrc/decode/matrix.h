// Weights of a linear map, packed once so that decoding reads them at the speed of memory.
//
// A matrix of `rows` outputs x `columns` inputs is cut into tiles of kTile rows. A tile is one contiguous run of bytes
// that is read from front to back, its rows next to each other in the lanes of a vector. Columns are padded with zeros
// to whole groups, rows to whole tiles. products.h multiplies; unpack returns rows.
//
//     fp32, bf16   the numbers themselves; bf16 rounds to nearest, ties to even
//     int8         w = scale * q, q in -127..127, an fp16 scale for each row and group of columns
//     int4         w = scale * q + min, q in 0..15, fp16 scale and min for each row and group of columns
#pragma once

#include <cstdint>
#include <string>

#include "decode/memory.h"
#include "decode/quantise.h"

namespace layercoop::decode {

enum class Format { fp32, bf16, int8, int4 };

constexpr std::int64_t kTile = 16;  // rows

// "fp32", "bf16", "int8" or "int4". parse_format throws std::invalid_argument for any other name.
std::string format_name(Format format);
Format parse_format(const std::string& name);

class Matrix {
 public:
  // A matrix of zeros. Throws std::invalid_argument for a size outside 0..2^31, std::bad_alloc where memory is short.
  Matrix(Format format, std::int64_t rows, std::int64_t columns);

  Format format() const noexcept { return format_; }
  std::int64_t rows() const noexcept { return rows_; }
  std::int64_t columns() const noexcept { return columns_; }
  std::int64_t padded_columns() const noexcept { return padded_columns_; }
  std::int64_t groups() const noexcept { return padded_columns_ / kGroup; }
  std::int64_t tiles() const noexcept { return (rows_ + kTile - 1) / kTile; }
  // The bytes that a product over all rows reads.
  std::int64_t bytes() const noexcept { return tiles() * tile_bytes_; }
  std::int64_t tile_bytes() const noexcept { return tile_bytes_; }
  const std::uint8_t* tile(std::int64_t index) const noexcept {
    return memory_.data() + index * tile_bytes_;
  }  // layout.h

  // Packs weights [count, columns] into rows first .. first + count, on all threads of cpu/pool; int8 and int4 quantise
  // them (quantise.h). Calls for different rows may run at the same time. Throws std::invalid_argument where a weight
  // or a scale is not finite.
  void fill(std::int64_t first, std::int64_t count, const float* weights, Origin origin);

  // The same for weights that are quantised already: q [count, columns], scales and mins (fp16 bits) [count, groups()].
  // The matrix must have the format in the name.
  void fill_int8(std::int64_t first, std::int64_t count, const std::int8_t* q, const std::uint16_t* scales);
  void fill_int4(std::int64_t first, std::int64_t count, const std::uint8_t* q, const std::uint16_t* scales,
                 const std::uint16_t* mins);

  // Writes rows first .. first + count in fp32 to out[i * stride + column], as the products see them.
  void unpack(std::int64_t first, std::int64_t count, float* out, std::int64_t stride) const;

 private:
  std::uint8_t* place(std::int64_t row) noexcept { return memory_.data() + row / kTile * tile_bytes_; }

  Format format_;
  std::int64_t rows_;
  std::int64_t columns_;
  std::int64_t padded_columns_;
  std::int64_t tile_bytes_;
  Memory memory_;
};

}  // namespace layercoop::decode
