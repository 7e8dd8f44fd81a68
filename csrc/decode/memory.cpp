#include "decode/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#include "cpu/fork_mutex.h"

namespace layercoop::decode {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPiece = std::size_t{128} << 20;

constexpr std::size_t round_up(std::size_t n, std::size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Pages come zeroed, and take memory when they are first written. One more huge page is requested than needed, so that
// the piece can begin at a huge page.
std::shared_ptr<std::uint8_t> map(std::size_t bytes) {
  const std::size_t size = round_up(bytes, kHugePage) + kHugePage;
  void* begin = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED) throw std::bad_alloc();
  auto* first = reinterpret_cast<std::uint8_t*>(round_up(reinterpret_cast<std::uintptr_t>(begin), kHugePage));
#ifdef MADV_HUGEPAGE
  // Refused where the system has none; then ordinary pages serve.
  static_cast<void>(madvise(first, round_up(bytes, kHugePage), MADV_HUGEPAGE));
#endif
  return {first, [begin, size](std::uint8_t*) { munmap(begin, size); }};
}

// A piece that takes small matrices. It lives as long as any matrix in it.
struct Open {
  std::weak_ptr<std::uint8_t> piece;
  std::size_t used;
};

struct Shared {
  cpu::ForkMutex mutex;
  std::vector<Open> pieces;
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
  const std::lock_guard<cpu::ForkMutex> lock(current.mutex);
  auto& pieces = current.pieces;
  pieces.erase(std::remove_if(pieces.begin(), pieces.end(), [](const Open& open) { return open.piece.expired(); }),
               pieces.end());
  // The first with room: a smaller matrix may fit where a larger one did not.
  Open* place = nullptr;
  for (Open& open : pieces) {
    if (open.used + size <= kPiece && (piece_ = open.piece.lock()) != nullptr) {
      place = &open;
      break;
    }
  }
  if (place == nullptr) {
    piece_ = map(kPiece);
    place = &pieces.emplace_back(Open{piece_, 0});
  }
  data_ = piece_.get() + place->used;
  place->used += size;
}

}  // namespace layercoop::decode
