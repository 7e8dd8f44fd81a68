// Products of many input rows with bf16 weights as models hold them, row after row: tiles of weights are packed for the
// moment and serve many rows, so that the kernel of packed weights does the work and no packed copy is kept.
#pragma once

#include <cstdint>

#include "half.h"

namespace layercoop::decode {

// out = x weight^T + bias. A number is one chain of sums over the inputs in order, in fp32, rounded once: its bits do
// not depend on the other rows, nor on the threads.
struct UnpackedProduct {
  const Bf16* x;       // [rows, inputs]
  const Bf16* weight;  // [outputs, inputs]
  const Bf16* bias;    // [outputs] or null
  std::int64_t rows;
  std::int64_t inputs;  // even
  std::int64_t outputs;
  Bf16* out;  // [rows, outputs]; none of the others
};

// On all threads of cpu/pool. Throws std::bad_alloc where memory for a few MiB is short.
void run(const UnpackedProduct& work);

}  // namespace layercoop::decode
