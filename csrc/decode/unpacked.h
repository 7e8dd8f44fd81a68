// Products of many input rows with weights as models hold them, row after row: tiles of weights are packed for the
// moment and serve many rows, so that the kernels of packed weights do the work and no packed copy is kept.
#pragma once

#include <cstdint>

#include "half.h"

namespace layercoop::decode {

// out = x weight^T + bias. T is float or Bf16. A number is one chain of sums over the inputs in order, in fp32, rounded
// to T once: its bits do not depend on the other rows, nor on the threads.
template <typename T>
struct UnpackedProduct {
  const T* x;       // [rows, inputs]; for Bf16 `inputs` is even
  const T* weight;  // [outputs, inputs]
  const T* bias;    // [outputs] or null
  std::int64_t rows;
  std::int64_t inputs;
  std::int64_t outputs;
  T* out;  // [rows, outputs]; none of the others
};

// On all threads of cpu/pool. Throws std::bad_alloc where memory for a few MiB is short.
void run(const UnpackedProduct<float>& work);
void run(const UnpackedProduct<Bf16>& work);

}  // namespace layercoop::decode
