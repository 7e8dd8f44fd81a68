#include "decode/matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#include "cpu/pool.h"
#include "decode/layout.h"
#include "half.h"

namespace layercoop::decode {
namespace {

constexpr Format kFormats[] = {Format::fp32, Format::bf16, Format::int8, Format::int4};

template <typename T>
void put(std::uint8_t* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

template <typename T>
T get(const std::uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// A number of rows or columns, at most 2^31, so that sizes in bytes fit 64 bits.
std::int64_t checked_size(std::int64_t size, const char* name) {
  constexpr std::int64_t most = std::int64_t{1} << 31;
  if (size < 0 || size > most) {
    throw std::invalid_argument(std::string(name) + ": " + std::to_string(size) + " is not in 0.." +
                                std::to_string(most));
  }
  return size;
}

// The bytes of all tiles. No machine has as much memory as the limit.
std::size_t checked_bytes(std::int64_t tiles, std::int64_t tile_bytes) {
  constexpr std::int64_t most = std::int64_t{1} << 47;
  std::int64_t bytes;
  if (__builtin_mul_overflow(tiles, tile_bytes, &bytes) || bytes > most) throw std::bad_alloc();
  return static_cast<std::size_t>(bytes);
}

std::int64_t rows_per_range(std::int64_t columns) {
  return std::max<std::int64_t>(1, (1 << 15) / std::max<std::int64_t>(1, columns));
}

void require_finite(const float* weights, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(weights[i])) throw std::invalid_argument("weights: not all are finite");
  }
}

}  // namespace

std::string format_name(Format format) {
  switch (format) {
    case Format::fp32: return "fp32";
    case Format::bf16: return "bf16";
    case Format::int8: return "int8";
    case Format::int4: break;
  }
  return "int4";
}

Format parse_format(const std::string& name) {
  for (const Format format : kFormats) {
    if (name == format_name(format)) return format;
  }
  throw std::invalid_argument("format: unknown '" + name + "'; use one of fp32, bf16, int8, int4");
}

Matrix::Matrix(Format format, std::int64_t rows, std::int64_t columns)
    : format_(format),
      rows_(checked_size(rows, "rows")),
      columns_(checked_size(columns, "columns")),
      padded_columns_((columns_ + kGroup - 1) / kGroup * kGroup),
      tile_bytes_(bytes_of_tile(format, padded_columns_ / kGroup)),
      memory_(checked_bytes(tiles(), tile_bytes_)) {}

void Matrix::fill(std::int64_t first, std::int64_t count, const float* weights, Origin origin) {
  cpu::parallel_for(count, rows_per_range(columns_), [&](std::int64_t begin, std::int64_t end) {
    const float* part = weights + begin * columns_;
    const std::int64_t rows = end - begin;
    if (format_ == Format::int8) {
      std::vector<std::int8_t> q(static_cast<std::size_t>(rows * columns_));
      std::vector<std::uint16_t> scales(static_cast<std::size_t>(rows * groups()));
      quantise_int8(part, rows, columns_, origin, q.data(), scales.data());
      fill_int8(first + begin, rows, q.data(), scales.data());
      return;
    }
    if (format_ == Format::int4) {
      std::vector<std::uint8_t> q(static_cast<std::size_t>(rows * columns_));
      std::vector<std::uint16_t> scales(static_cast<std::size_t>(rows * groups()));
      std::vector<std::uint16_t> mins(scales.size());
      quantise_int4(part, rows, columns_, origin, q.data(), scales.data(), mins.data());
      fill_int4(first + begin, rows, q.data(), scales.data(), mins.data());
      return;
    }
    require_finite(part, rows * columns_);
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t row = first + begin + i;
      const std::int64_t lane = row % kTile;
      std::uint8_t* tile = place(row);
      const float* from = part + i * columns_;
      if (format_ == Format::fp32) {
        for (std::int64_t k = 0; k < columns_; ++k) put(tile + fp32_at(lane, k), from[k]);
      } else {
        for (std::int64_t k = 0; k < columns_; ++k) put(tile + bf16_at(lane, k), to_bf16(from[k]));
      }
    }
  });
}

void Matrix::fill_int8(std::int64_t first, std::int64_t count, const std::int8_t* q, const std::uint16_t* scales) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t lane = (first + i) % kTile;
    std::uint8_t* tile = place(first + i);
    // Four columns are contiguous.
    const std::int8_t* row = q + i * columns_;
    const std::int64_t fours = columns_ / 4 * 4;
    for (std::int64_t k = 0; k < fours; k += 4) std::memcpy(tile + int8_at(lane, k), row + k, 4);
    for (std::int64_t k = fours; k < columns_; ++k) put(tile + int8_at(lane, k), row[k]);
    for (std::int64_t g = 0; g < groups(); ++g) put(tile + int8_scales(g) + lane * 2, scales[i * groups() + g]);
  }
}

void Matrix::fill_int4(std::int64_t first, std::int64_t count, const std::uint8_t* q, const std::uint16_t* scales,
                       const std::uint16_t* mins) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t lane = (first + i) % kTile;
    std::uint8_t* tile = place(first + i);
    // Eight columns are contiguous.
    const std::uint8_t* row = q + i * columns_;
    const std::int64_t eights = columns_ / 8 * 8;
    for (std::int64_t k = 0; k < eights; k += 8) {
      std::uint32_t low;
      std::uint32_t high;
      std::memcpy(&low, row + k, 4);
      std::memcpy(&high, row + k + 4, 4);
      put(tile + int4_at(lane, k), low | high << 4);
    }
    for (std::int64_t k = eights; k < columns_; ++k) {
      std::uint8_t& byte = tile[int4_at(lane, k)];
      const std::uint8_t half = row[k];
      byte = static_cast<std::uint8_t>(k % 8 < 4 ? (byte & 0xf0) | half : (byte & 0x0f) | half << 4);
    }
    for (std::int64_t g = 0; g < groups(); ++g) {
      put(tile + int4_scales(g) + lane * 2, scales[i * groups() + g]);
      put(tile + int4_mins(g) + lane * 2, mins[i * groups() + g]);
    }
  }
}

void Matrix::unpack(std::int64_t first, std::int64_t count, float* out, std::int64_t stride) const {
  cpu::parallel_for(count, rows_per_range(columns_), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t lane = (first + i) % kTile;
      const std::uint8_t* from = tile((first + i) / kTile);
      float* to = out + i * stride;
      float scale = 0.0f;
      float low = 0.0f;
      for (std::int64_t k = 0; k < columns_; ++k) {
        switch (format_) {
          case Format::fp32: to[k] = get<float>(from + fp32_at(lane, k)); break;
          case Format::bf16: to[k] = from_bf16(get<std::uint16_t>(from + bf16_at(lane, k))); break;
          case Format::int8:
            if (k % kGroup == 0) scale = from_half(get<std::uint16_t>(from + int8_scales(k / kGroup) + lane * 2));
            to[k] = scale * static_cast<float>(get<std::int8_t>(from + int8_at(lane, k)));
            break;
          case Format::int4: {
            if (k % kGroup == 0) {
              scale = from_half(get<std::uint16_t>(from + int4_scales(k / kGroup) + lane * 2));
              low = from_half(get<std::uint16_t>(from + int4_mins(k / kGroup) + lane * 2));
            }
            const std::uint8_t byte = from[int4_at(lane, k)];
            to[k] = scale * static_cast<float>(k % 8 < 4 ? byte & 0x0f : byte >> 4) + low;
            break;
          }
        }
      }
    }
  });
}

}  // namespace layercoop::decode
