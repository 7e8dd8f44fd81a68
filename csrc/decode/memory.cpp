#include "decode/memory.h"

#include <sys/mman.h>

#include <mutex>
#include <new>

namespace layercoop::decode {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPiece = std::size_t{32} << 20;

constexpr std::size_t round_up(std::size_t n, std::size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Pages come zeroed, and take memory when they are first written. One huge page more is asked for than needed, so that
// the piece can begin where one does.
std::shared_ptr<std::uint8_t> map(std::size_t bytes) {
  const std::size_t size = round_up(bytes, kHugePage) + kHugePage;
  void* begin = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED) throw std::bad_alloc();
  auto* first = reinterpret_cast<std::uint8_t*>(round_up(reinterpret_cast<std::uintptr_t>(begin), kHugePage));
#ifdef MADV_HUGEPAGE
  // Refused where the kernel has none: then ordinary pages do.
  static_cast<void>(madvise(first, round_up(bytes, kHugePage), MADV_HUGEPAGE));
#endif
  return {first, [begin, size](std::uint8_t*) { munmap(begin, size); }};
}

// The piece that small matrices are being put into. It lives as long as a matrix in it does.
struct Shared {
  std::mutex mutex;
  std::weak_ptr<std::uint8_t> piece;
  std::size_t used = 0;
};

Shared& shared() {
  static Shared one;
  return one;
}

}  // namespace

Memory::Memory(std::size_t bytes) {
  const std::size_t size = round_up(bytes, kLine);
  if (size >= kPiece / 4) {
    piece_ = map(size);
    data_ = piece_.get();
    return;
  }
  Shared& current = shared();
  const std::lock_guard<std::mutex> lock(current.mutex);
  piece_ = current.piece.lock();
  if (piece_ == nullptr || current.used + size > kPiece) {
    piece_ = map(kPiece);
    current.piece = piece_;
    current.used = 0;
  }
  data_ = piece_.get() + current.used;
  current.used += size;
}

}  // namespace layercoop::decode
