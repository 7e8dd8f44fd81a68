#include "decode/pages.h"

namespace layercoop::decode {
namespace {

template <typename T>
void scatter(const T* row, std::int64_t width, std::int64_t slot, std::uint8_t* keys) {
  T* const out = reinterpret_cast<T*>(keys) + slot;
  for (std::int64_t d = 0; d < width; ++d) out[d * kPage] = row[d];
}

}  // namespace

void Pages::store(const RowKernels& kernels, std::uint8_t* page, std::int64_t head, std::int64_t slot, const float* key,
                  const float* value, float* space) const noexcept {
  std::uint8_t* const keys_at = keys(page, head);
  std::uint8_t* const value_at = values(page, head) + slot * padded_width_ * element_;
  switch (format_) {
    case KvFormat::fp32:
      scatter(key, width_, slot, keys_at);
      return kernels.store_fp32(value, width_, reinterpret_cast<float*>(value_at));
    case KvFormat::bf16:
    case KvFormat::fp16: {
      const auto store_halves = format_ == KvFormat::bf16 ? kernels.store_bf16 : kernels.store_fp16;
      auto* const row = reinterpret_cast<std::uint16_t*>(space);
      store_halves(key, width_, row);
      scatter(row, width_, slot, keys_at);
      return store_halves(value, width_, reinterpret_cast<std::uint16_t*>(value_at));
    }
    case KvFormat::int8: {
      auto* const row = reinterpret_cast<std::int8_t*>(space);
      float* const scale = scales(page, head) + slot;
      scale[0] = kernels.store_int8(key, width_, row);
      scatter(row, width_, slot, keys_at);
      scale[kPage] = kernels.store_int8(value, width_, reinterpret_cast<std::int8_t*>(value_at));
      return;
    }
  }
}

}  // namespace layercoop::decode
