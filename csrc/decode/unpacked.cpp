#include "decode/unpacked.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

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
// Bytes of inputs in fp32 at a time.
constexpr std::int64_t kInputBytes = 1 << 23;
constexpr std::int64_t kPiecesPerThread = 4;

// What a thread packs weights into, and computes rows of fp32 in: kept, since fresh memory costs page faults.
struct Scratch {
  cpu::Aligned<std::uint32_t> weights;
  cpu::Aligned<float> rows;
};
thread_local Scratch scratch;

template <typename Numbers>
auto* room(Numbers& numbers, std::int64_t count) {
  if (static_cast<std::int64_t>(numbers.size()) < count) numbers.resize(static_cast<std::size_t>(count));
  return numbers.data();
}

// Rows first .. first + kTile of the weight as a tile of layout.h: units of 32 bits, a number of fp32 or a pair of
// bf16, of sixteen rows next to each other; zeros behind the last row.
template <typename T>
void pack(const UnpackedProduct<T>& work, std::int64_t first, std::uint32_t* tile) {
  const std::int64_t units = work.inputs * static_cast<std::int64_t>(sizeof(T)) / 4;
  const std::int64_t count = std::min(kTile, work.outputs - first);
  const auto* from = reinterpret_cast<const unsigned char*>(work.weight + first * work.inputs);
  if (count < kTile) std::memset(tile, 0, static_cast<std::size_t>(units * kTile * 4));
  for (std::int64_t unit = 0; unit < units; ++unit) {
    for (std::int64_t row = 0; row < count; ++row) {
      std::memcpy(tile + unit * kTile + row, from + (row * units + unit) * 4, 4);
    }
  }
}

// The outputs [first, last), counted in tiles, of the rows [from, to).
template <typename T>
void piece(const UnpackedProduct<T>& work, const float* x, std::int64_t first, std::int64_t last, std::int64_t from,
           std::int64_t to) {
  const ProductKernels& level = *kVersions.get();
  const RowKernels& rows_level = row_kernels();
  const std::int64_t units = work.inputs * static_cast<std::int64_t>(sizeof(T)) / 4;
  std::uint32_t* const packed = room(scratch.weights, (last - first) * units * kTile);
  for (std::int64_t tile = first; tile < last; ++tile) {
    pack(work, tile * kTile, packed + (tile - first) * units * kTile);
  }
  const std::int64_t begin = first * kTile;
  const std::int64_t width = std::min(work.outputs, last * kTile) - begin;
  const std::int64_t padded = (last - first) * kTile;
  const PackedRows weights{reinterpret_cast<const std::uint8_t*>(packed), units * kLine, width};
  float* const sums = std::is_same_v<T, float> ? nullptr : room(scratch.rows, (kRowsAtOnce + 2) * padded);
  float* const bias = sums == nullptr ? nullptr : sums + kRowsAtOnce * padded;
  if constexpr (std::is_same_v<T, Bf16>) {
    if (work.bias != nullptr) level.widen(work.bias + begin, width, bias);
  }
  for (std::int64_t row = from; row < to; row += kRowsAtOnce) {
    const std::int64_t count = std::min(kRowsAtOnce, to - row);
    const InputRows inputs{x + row * work.inputs, nullptr, nullptr, nullptr, nullptr, work.inputs, count, 0};
    if constexpr (std::is_same_v<T, float>) {
      float* const out = work.out + row * work.outputs + begin;
      level.products.fp32(weights, inputs, out, work.outputs, 0, width);
      if (work.bias == nullptr) continue;
      for (std::int64_t r = 0; r < count; ++r) rows_level.add(work.bias + begin, width, out + r * work.outputs);
    } else {
      level.products.bf16(weights, inputs, sums, padded, 0, width);
      auto* const rounded = reinterpret_cast<std::uint16_t*>(bias + padded);
      for (std::int64_t r = 0; r < count; ++r) {
        if (work.bias != nullptr) rows_level.add(bias, width, sums + r * padded);
        rows_level.store_bf16(sums + r * padded, width, rounded);  // which writes whole vectors
        std::memcpy(work.out + (row + r) * work.outputs + begin, rounded, static_cast<std::size_t>(2 * width));
      }
    }
  }
}

// All outputs of rows that are there in fp32. A piece is some tiles of outputs and some rows: enough of them that
// threads end together.
template <typename T>
void all_outputs(const UnpackedProduct<T>& work, const float* x) {
  const std::int64_t tiles = (work.outputs + kTile - 1) / kTile;
  const std::int64_t tile_bytes = work.inputs * static_cast<std::int64_t>(sizeof(T)) * kTile;
  const std::int64_t wanted = kPiecesPerThread * cpu::num_threads();
  const std::int64_t at_once = std::max<std::int64_t>(
      1, std::min(kWeightsAtOnce / std::max<std::int64_t>(1, tile_bytes), (tiles + wanted - 1) / wanted));
  const std::int64_t across = (tiles + at_once - 1) / at_once;
  const std::int64_t down = std::max<std::int64_t>(
      1, std::min(work.rows / kLeastRows, (wanted + across - 1) / std::max<std::int64_t>(1, across)));
  cpu::parallel_for(across * down, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t first = item / down * at_once;
      const std::int64_t part = item % down;
      piece(work, x, first, std::min(tiles, first + at_once), work.rows * part / down, work.rows * (part + 1) / down);
    }
  });
}

}  // namespace

void run(const UnpackedProduct<float>& work) { all_outputs(work, work.x); }

void run(const UnpackedProduct<Bf16>& work) {
  const std::int64_t at_once =
      std::max(kRowsAtOnce, kInputBytes / 4 / std::max<std::int64_t>(1, work.inputs) / kRowsAtOnce * kRowsAtOnce);
  cpu::Aligned<float> wide(static_cast<std::size_t>(std::min(at_once, work.rows) * work.inputs));
  const Widen* const widen = kVersions.get()->widen;
  for (std::int64_t first = 0; first < work.rows; first += at_once) {
    UnpackedProduct<Bf16> some = work;
    some.rows = std::min(at_once, work.rows - first);
    some.x += first * work.inputs;
    some.out += first * work.outputs;
    constexpr std::int64_t grain = 16;
    cpu::parallel_for(some.rows, grain, [&](std::int64_t begin, std::int64_t end) {
      widen(some.x + begin * work.inputs, (end - begin) * work.inputs, wide.data() + begin * work.inputs);
    });
    all_outputs(some, wide.data());
  }
}

}  // namespace layercoop::decode
