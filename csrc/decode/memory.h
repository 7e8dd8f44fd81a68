// Memory for packed weights: zeroed, aligned to cache lines, in large pieces for which the operating system is asked
// for huge pages. Small matrices share a piece, so that none wastes the rest of a huge page.
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
