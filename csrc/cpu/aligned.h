// Arrays that begin on a cache line, so that no vector load of a table row crosses into a second line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace layercoop::cpu {

template <typename T>
struct CacheLines {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  CacheLines() = default;
  template <typename U>
  CacheLines(const CacheLines<U>&) noexcept {}

  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, std::size_t) noexcept { ::operator delete(p, kLine); }

  friend bool operator==(const CacheLines&, const CacheLines&) { return true; }
  friend bool operator!=(const CacheLines&, const CacheLines&) { return false; }
};

template <typename T>
using Aligned = std::vector<T, CacheLines<T>>;

}  // namespace layercoop::cpu
