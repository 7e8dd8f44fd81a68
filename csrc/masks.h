// Masks: which players of a game are kept.
//
// A packed mask is `words(n)` 64-bit words; bit i % 64 of word i / 64 (least significant first) is player i, 1 = kept.
// Bits past the last player are 0. Rows of masks are contiguous.
#pragma once

#include <cstdint>
#include <vector>

namespace layercoop {

constexpr int kMaxPlayers = 512;

constexpr int words(int n_players) { return (n_players + 63) / 64; }

// bools [count, n_players], one byte each, anything but 0 = kept -> packed [count, words].
void pack_masks(const std::uint8_t* bools, std::int64_t count, int n_players, std::uint64_t* packed);

// packed [count, words] -> bools [count, n_players], bytes 0 and 1.
void unpack_masks(const std::uint64_t* packed, std::int64_t count, int n_players, std::uint8_t* bools);

// Kept players of each row: packed [count, n_words] -> counts [count].
void popcounts(const std::uint64_t* packed, std::int64_t count, int n_words, std::int32_t* counts);

// Throws std::invalid_argument naming the first row that has a bit past the last player.
void check_packed(const std::uint64_t* packed, std::int64_t count, int n_players);

// The distinct masks in lexicographic order: player 0 first, removed before kept. Masks that share a prefix are
// neighbours, and those that keep nothing after it come first among them.
struct SortedMasks {
  int n_players = 0;
  int n_words = 0;
  std::vector<std::uint64_t> rows;        // [size, n_words]
  std::vector<std::int64_t> unique_rows;  // [size] first input row with this mask
  std::vector<std::int64_t> inverse;      // [count] distinct mask of each input row

  std::int64_t size() const { return static_cast<std::int64_t>(unique_rows.size()); }

  bool kept(std::int64_t mask, int player) const {
    return (rows[static_cast<std::size_t>(mask * n_words + player / 64)] >> (player % 64)) & 1;
  }

  // The last kept player below `end`, or -1.
  int last_kept_below(std::int64_t mask, int end) const;

  // How many players at or above `begin` are kept.
  int kept_from(std::int64_t mask, int begin) const;

  // The first player in which two distinct masks differ.
  int first_difference(std::int64_t a, std::int64_t b) const;
};

// Linear in count. Throws std::invalid_argument for more than 2^31 - 1 masks.
SortedMasks sort_masks(const std::uint64_t* packed, std::int64_t count, int n_players);

}  // namespace layercoop
