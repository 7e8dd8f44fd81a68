// The products of products.h once a format and instruction set, and what makes int8 of inputs.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "decode/products.h"

namespace layercoop::decode {

using Product = void(const Matrix& matrix, const Inputs& inputs, float* out, std::int64_t out_stride,
                     std::int64_t begin, std::int64_t end);

struct Products {
  Product* fp32;
  Product* bf16;
  Product* int8;
  Product* int4;
};

// x [groups * kGroup] -> q, and each group's scale and sum of q. A group that is not all finite gets a scale of NaN.
using Quantise = void(const float* x, std::int64_t groups, std::int8_t* q, float* scales, std::int32_t* sums);

// x [groups * kGroup] rounded to bf16.
using Narrow = void(const float* x, std::int64_t groups, std::uint16_t* out);

struct ProductKernels {
  Products products;
  Quantise* quantise;
  Narrow* narrow;
};

extern const ProductKernels kProductKernelsPortable, kProductKernelsAvx2, kProductKernelsAvx512;
// AVX-512 with dot products of int8 (VNNI) and of bf16: only the formats that these serve.
extern Product* const kInt8Vnni;
extern Product* const kInt4Vnni;
extern Product* const kBf16Dots;

}  // namespace layercoop::decode
