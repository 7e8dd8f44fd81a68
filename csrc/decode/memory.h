// Memory for packed weights: zeroed, on cache lines, in pieces of many mebibytes that the kernel is asked to back with
// huge pages. Small matrices share a piece, so that none wastes the rest of a huge page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace layercoop::decode {

class Memory {
 public:
  // Throws std::bad_alloc.
  explicit Memory(std::size_t bytes);

  std::uint8_t* data() noexcept { return data_; }
  const std::uint8_t* data() const noexcept { return data_; }

 private:
  std::shared_ptr<std::uint8_t> piece_;
  std::uint8_t* data_;
};

}  // namespace layercoop::decode
