#include "decode/products.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "decode/layout.h"
#include "decode/product_kernels.h"

namespace layercoop::decode {
namespace {

constexpr cpu::Versions<const ProductKernels> kVersions = LAYERCOOP_VERSIONS(kProductKernels);

Product* product_of(Format format) {
  const Products& plain = kVersions.get()->products;
#if LAYERCOOP_X86
  if (format == Format::bf16 && cpu::uses_bf16_matrices()) return kBf16Matrices;
#endif
#if LAYERCOOP_X86 || LAYERCOOP_ARM
  if (format == Format::int8 && cpu::uses_int8_matrices()) return kInt8Matrices;
  if (format == Format::int4 && cpu::uses_int8_matrices()) return kInt4Matrices;
  if (format == Format::bf16 && cpu::uses_bf16_dots()) return kBf16Dots;
  if (format == Format::int8 && cpu::uses_int8_dots()) return kInt8Dots;
  if (format == Format::int4 && cpu::uses_int8_dots()) return kInt4Dots;
#endif
  switch (format) {
    case Format::fp32: return plain.fp32;
    case Format::bf16: return plain.bf16;
    case Format::int8: return plain.int8;
    case Format::int4: break;
  }
  return plain.int4;
}

std::int64_t padded(std::int64_t columns) { return (columns + kGroup - 1) / kGroup * kGroup; }

}  // namespace

Inputs::Inputs(std::int64_t max_rows, std::int64_t max_columns)
    : max_rows_(max_rows),
      max_columns_(max_columns),
      stride_(padded(max_columns)),
      values_(static_cast<std::size_t>(max_rows * stride_)),
      bf16_(values_.size()),
      q_(values_.size()),
      scales_(values_.size() / kGroup),
      sums_(scales_.size()) {}

void Inputs::prepare(std::int64_t rows, std::int64_t columns, Format format) {
  rows_ = rows;
  columns_ = columns;
  groups_ = padded(columns) / kGroup;
  const ProductKernels& level = *kVersions.get();
  for (std::int64_t r = 0; r < rows; ++r) {
    float* x = row(r);
    std::fill(x + columns, x + groups_ * kGroup, 0.0f);
    const std::int64_t at = r * stride_;
    if (format == Format::int8 || format == Format::int4) {
      level.quantise(x, groups_, q_.data() + at, scales_.data() + at / kGroup, sums_.data() + at / kGroup);
    } else if (format == Format::bf16 && cpu::uses_bf16_dots()) {
      level.narrow(x, groups_, bf16_.data() + at);
    }
  }
}

void multiply(const Matrix& matrix, const Inputs& inputs, float* out, std::int64_t out_stride, std::int64_t begin,
              std::int64_t end) {
  const PackedRows weights{matrix.tile(0), matrix.tile_bytes(), matrix.rows()};
  product_of(matrix.format())(weights, inputs.prepared(), out, out_stride, begin, end);
}

std::pair<std::int64_t, std::int64_t> share(std::int64_t rows, std::int64_t part, std::int64_t parts) noexcept {
  const std::int64_t tiles = (rows + kTile - 1) / kTile;
  return {std::min(rows, tiles * part / parts * kTile), std::min(rows, tiles * (part + 1) / parts * kTile)};
}

}  // namespace layercoop::decode
