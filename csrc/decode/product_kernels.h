// The table of the products of products.h, one for each format, and of the conversions of their inputs.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "decode/products.h"
#include "half.h"

namespace layercoop::decode {

using Product = void(const PackedRows& weights, const InputRows& inputs, float* out, std::int64_t out_stride,
                     std::int64_t begin, std::int64_t end);

struct Products {
  Product* fp32;
  Product* bf16;
  Product* int8;
  Product* int4;
};

// Quantises x [groups * kGroup] to q, with a scale and the sum of q for each group. A group with a number that is not
// finite gets a scale of NaN.
using Quantise = void(const float* x, std::int64_t groups, std::int8_t* q, float* scales, std::int32_t* sums);

// x [groups * kGroup] rounded to bf16.
using Narrow = void(const float* x, std::int64_t groups, std::uint16_t* out);

// n numbers of bf16 as fp32.
using Widen = void(const Bf16* x, std::int64_t n, float* out);

struct ProductKernels {
  Products products;
  Quantise* quantise;
  Narrow* narrow;
  Widen* widen;
};

extern const ProductKernels kProductKernelsPortable, kProductKernelsAvx2, kProductKernelsAvx512, kProductKernelsNeon;
// With dot products of int8 and of bf16, for the formats that these serve: of AVX-512 (VNNI, BF16), or of NEON
// (DotProd, BF16); and with products of matrices, which serve the same formats better (AMX; I8MM, for integers).
extern Product* const kInt8Dots;
extern Product* const kInt4Dots;
extern Product* const kInt8Matrices;
extern Product* const kInt4Matrices;
extern Product* const kBf16Dots;
extern Product* const kBf16Matrices;

}  // namespace layercoop::decode
