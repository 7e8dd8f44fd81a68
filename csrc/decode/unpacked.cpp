#include "decode/unpacked.h"

#include <algorithm>
#include <cstring>

#include "cpu/aligned.h"
#include "cpu/dispatch.h"
#include "cpu/pool.h"
#include "decode/layout.h"
#include "decode/product_kernels.h"
#include "decode/row_kernels.h"

namespace layercoop::decode {
namespace {

constexpr cpu::Versions<const ProductKernels> kVersions = LAYERCOOP_VERSIONS(kProductKernels);

constexpr std::int64_t kRowsAtOnce = 16;
// Bytes of packed weights that meet all rows before the next ones: they stay in a core's cache.
constexpr std::int64_t kWeightsAtOnce = 1 << 17;
// Rows that a packed tile has to meet at least, so that packing takes little of the time.
constexpr std::int64_t kLeastRows = 128;
// Numbers of the inputs that are there in fp32 at a time.
constexpr std::int64_t kInputsAtOnce = 1 << 21;
constexpr std::int64_t kPiecesPerThread = 4;

// Where a thread packs weights, and keeps a bias and some rows of outputs before they are rounded: it stays, since
// fresh memory costs page faults.
struct Scratch {
  cpu::Aligned<std::uint32_t> weights;
  cpu::Aligned<float> bias, sums;
  cpu::Aligned<std::uint16_t> rounded;
};
thread_local Scratch scratch;

template <typename T>
T* room(cpu::Aligned<T>& numbers, std::int64_t count) {
  if (static_cast<std::int64_t>(numbers.size()) < count) numbers.resize(static_cast<std::size_t>(count));
  return numbers.data();
}

// Some rows of a product, as fp32.
struct Widened {
  const UnpackedProduct& work;
  const float* x;  // [rows, inputs]

  std::int64_t pairs() const { return work.inputs / 2; }
  std::int64_t tiles() const { return (work.outputs + kTile - 1) / kTile; }
};

// Outputs first .. first + kTile of the weight as a tile of layout.h: the pairs of sixteen of them next to each other,
// zeros behind the last.
void pack(const Widened& rows, std::int64_t first, std::uint32_t* tile) {
  const std::int64_t pairs = rows.pairs();
  const std::int64_t count = std::min(kTile, rows.work.outputs - first);
  const auto* from = reinterpret_cast<const unsigned char*>(rows.work.weight + first * rows.work.inputs);
  if (count < kTile) std::memset(tile, 0, static_cast<std::size_t>(pairs * kLine));
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    for (std::int64_t output = 0; output < count; ++output) {
      std::memcpy(tile + pair * kTile + output, from + (output * pairs + pair) * 4, 4);
    }
  }
}

// The tiles [first, last) of outputs for the rows [begin, end).
void piece(const Widened& rows, std::int64_t first, std::int64_t last, std::int64_t begin, std::int64_t end) {
  const UnpackedProduct& work = rows.work;
  const ProductKernels& kernels = *kVersions.get();
  const RowKernels& of_rows = row_kernels();
  const std::int64_t tile_pairs = rows.pairs() * kTile;
  const std::int64_t output = first * kTile;
  const std::int64_t width = std::min(work.outputs - output, (last - first) * kTile);
  const std::int64_t stride = (last - first) * kTile;
  std::uint32_t* const packed = room(scratch.weights, (last - first) * tile_pairs);
  for (std::int64_t tile = first; tile < last; ++tile) pack(rows, tile * kTile, packed + (tile - first) * tile_pairs);
  const PackedRows weights{reinterpret_cast<const std::uint8_t*>(packed), 4 * tile_pairs, width};
  float* const bias = room(scratch.bias, stride);
  if (work.bias != nullptr) kernels.widen(work.bias + output, width, bias);
  float* const sums = room(scratch.sums, kRowsAtOnce * stride);
  std::uint16_t* const rounded = room(scratch.rounded, stride);
  for (std::int64_t row = begin; row < end; row += kRowsAtOnce) {
    const std::int64_t count = std::min(kRowsAtOnce, end - row);
    const float* const x = rows.x + row * work.inputs;
    const InputRows inputs{x, nullptr, nullptr, nullptr, nullptr, work.inputs, count, 0};
    kernels.products.bf16(weights, inputs, sums, stride, 0, width);
    for (std::int64_t r = 0; r < count; ++r) {
      if (work.bias != nullptr) of_rows.add(bias, width, sums + r * stride);
      of_rows.store_bf16(sums + r * stride, width, rounded);  // whole vectors, so not into `out` itself
      std::memcpy(work.out + (row + r) * work.outputs + output, rounded, static_cast<std::size_t>(2 * width));
    }
  }
}

// All outputs. A piece is some tiles of them and some rows: as many pieces as let threads end together.
void all_outputs(const Widened& rows) {
  const std::int64_t wanted = kPiecesPerThread * cpu::num_threads();
  const std::int64_t tiles = rows.tiles();
  const std::int64_t in_cache = kWeightsAtOnce / std::max<std::int64_t>(1, rows.pairs() * kLine);
  const std::int64_t at_once = std::max<std::int64_t>(1, std::min(in_cache, (tiles + wanted - 1) / wanted));
  const std::int64_t across = (tiles + at_once - 1) / at_once;
  const std::int64_t count = rows.work.rows;
  const std::int64_t down =
      std::max<std::int64_t>(1, std::min(count / kLeastRows, wanted / std::max<std::int64_t>(1, across)));
  cpu::parallel_for(across * down, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t first = item / down * at_once;
      const std::int64_t part = item % down;
      piece(rows, first, std::min(tiles, first + at_once), count * part / down, count * (part + 1) / down);
    }
  });
}

}  // namespace

void run(const UnpackedProduct& work) {
  const std::int64_t fitting = kInputsAtOnce / std::max<std::int64_t>(1, work.inputs) / kRowsAtOnce * kRowsAtOnce;
  const std::int64_t at_once = std::max(kRowsAtOnce, fitting);
  cpu::Aligned<float> wide(static_cast<std::size_t>(std::min(at_once, work.rows) * work.inputs));
  Widen* const widen = kVersions.get()->widen;
  for (std::int64_t first = 0; first < work.rows; first += at_once) {
    UnpackedProduct some = work;
    some.rows = std::min(at_once, work.rows - first);
    some.x += first * work.inputs;
    some.out += first * work.outputs;
    cpu::parallel_for(some.rows, kRowsAtOnce, [&](std::int64_t begin, std::int64_t end) {
      widen(some.x + begin * work.inputs, (end - begin) * work.inputs, wide.data() + begin * work.inputs);
    });
    all_outputs({some, wide.data()});
  }
}

}  // namespace layercoop::decode
