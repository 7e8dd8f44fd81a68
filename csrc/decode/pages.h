// Keys and values of decoded tokens: pages of kPage tokens of one block each, in memory that the caller owns.
//
// A page holds for each key head its keys, [width, kPage], so that a vector holds one number of each of sixteen keys,
// then its values, [kPage, padded_width]. int8 pages end with the scales, [kv_heads, 2, kPage].
#pragma once

#include <cstdint>

#include "decode/row_kernels.h"

namespace layercoop::decode {

enum class KvFormat { fp32, bf16, fp16, int8 };

class Pages {
 public:
  Pages(KvFormat format, std::int64_t kv_heads, std::int64_t width)
      : format_(format),
        kv_heads_(kv_heads),
        width_(width),
        padded_width_((width + kPage - 1) / kPage * kPage),
        element_(format == KvFormat::fp32   ? 4
                 : format == KvFormat::int8 ? 1
                                            : 2) {}

  KvFormat format() const noexcept { return format_; }
  std::int64_t padded_width() const noexcept { return padded_width_; }

  std::int64_t page_bytes() const noexcept {
    const std::int64_t scales = format_ == KvFormat::int8 ? kv_heads_ * 2 * kPage * 4 : 0;
    return (kv_heads_ * head_bytes() + scales + 63) / 64 * 64;
  }

  // Where a head's keys and values begin in a page that begins at `page`.
  std::uint8_t* keys(std::uint8_t* page, std::int64_t head) const noexcept { return page + head * head_bytes(); }
  std::uint8_t* values(std::uint8_t* page, std::int64_t head) const noexcept {
    return keys(page, head) + width_ * kPage * element_;
  }
  // Null where the format has none. The values' scales are kPage further.
  float* scales(std::uint8_t* page, std::int64_t head) const noexcept {
    if (format_ != KvFormat::int8) return nullptr;
    return reinterpret_cast<float*>(page + kv_heads_ * head_bytes()) + head * 2 * kPage;
  }

  // Writes a token's key and value of one head to a slot of a page. `space` has room for padded_width numbers.
  void store(const RowKernels& kernels, std::uint8_t* page, std::int64_t head, std::int64_t slot, const float* key,
             const float* value, float* space) const noexcept;

 private:
  std::int64_t head_bytes() const noexcept { return (width_ + padded_width_) * kPage * element_; }

  KvFormat format_;
  std::int64_t kv_heads_;
  std::int64_t width_;
  std::int64_t padded_width_;
  std::int64_t element_;
};

}  // namespace layercoop::decode
