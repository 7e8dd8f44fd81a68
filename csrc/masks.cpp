#include "masks.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/pool.h"

#if LAYERCOOP_X86
#include <immintrin.h>
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "eight bools are read as one little-endian word");

namespace layercoop {
namespace {

// Bytes of bools that a thread takes at a time: some tens of microseconds of work.
constexpr std::int64_t kBytesPerRange = 1 << 18;

std::int64_t rows_per_range(std::int64_t bytes_per_row) {
  return std::max<std::int64_t>(1, kBytesPerRange / bytes_per_row);
}

// Each kernel below handles whole rows; a row is `full` blocks of 64 players and a rest of `n_players % 64`.
using PackRows = void(const std::uint8_t* bools, std::int64_t count, int n_players, std::uint64_t* packed);
using UnpackRows = void(const std::uint64_t* packed, std::int64_t count, int n_players, std::uint8_t* bools);

// Bit j of the result = byte j is not 0.
std::uint64_t pack8(const std::uint8_t* bools, int n) {
  std::uint64_t bytes = 0;
  std::memcpy(&bytes, bools, static_cast<std::size_t>(n));
  constexpr std::uint64_t low7 = 0x7f7f7f7f7f7f7f7f;
  const std::uint64_t ones = ((((bytes & low7) + low7) | bytes) >> 7) & 0x0101010101010101;
  return (ones * 0x0102040810204080) >> 56;  // the product moves the bit of byte j to bit 56 + j, without a carry
}

// Byte j of the result = bit j.
void unpack8(std::uint64_t bits, std::uint8_t* bools, int n) {
  constexpr std::uint64_t low7 = 0x7f7f7f7f7f7f7f7f;
  const std::uint64_t spread = ((bits & 0xff) * 0x0101010101010101) & 0x8040201008040201;  // bit j of byte j
  const std::uint64_t bytes = ((((spread & low7) + low7) | spread) >> 7) & 0x0101010101010101;
  std::memcpy(bools, &bytes, static_cast<std::size_t>(n));
}

void pack_portable(const std::uint8_t* bools, std::int64_t count, int n_players, std::uint64_t* packed) {
  for (std::int64_t row = 0; row < count; ++row) {
    for (int base = 0; base < n_players; base += 64) {
      std::uint64_t word = 0;
      for (int i = base; i < std::min(base + 64, n_players); i += 8) {
        word |= pack8(bools + i, std::min(8, n_players - i)) << (i - base);
      }
      *packed++ = word;
    }
    bools += n_players;
  }
}

void unpack_portable(const std::uint64_t* packed, std::int64_t count, int n_players, std::uint8_t* bools) {
  for (std::int64_t row = 0; row < count; ++row) {
    for (int i = 0; i < n_players; i += 8) {
      unpack8(packed[i / 64] >> (i % 64), bools + i, std::min(8, n_players - i));
    }
    packed += words(n_players);
    bools += n_players;
  }
}

#if LAYERCOOP_X86

LAYERCOOP_AVX2 std::uint64_t removed32_avx2(const std::uint8_t* bools) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bools));
  return static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
}

LAYERCOOP_AVX2 std::uint64_t pack64_avx2(const std::uint8_t* bools) {
  return ~(removed32_avx2(bools + 32) << 32 | removed32_avx2(bools));
}

LAYERCOOP_AVX2 void pack_avx2(const std::uint8_t* bools, std::int64_t count, int n_players, std::uint64_t* packed) {
  const int rest = n_players % 64;
  alignas(32) std::uint8_t tail[64] = {};
  for (std::int64_t row = 0; row < count; ++row) {
    for (int full = n_players / 64; full > 0; --full, bools += 64) *packed++ = pack64_avx2(bools);
    if (rest == 0) continue;
    std::memcpy(tail, bools, static_cast<std::size_t>(rest));
    *packed++ = pack64_avx2(tail);
    bools += rest;
  }
}

LAYERCOOP_AVX2 void unpack64_avx2(std::uint64_t word, std::uint8_t* bools) {
  // Every byte receives the byte of the word that holds its bit, and keeps only that bit.
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m256i one = _mm256_set1_epi8(1);
  const __m256i source = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  for (int at = 0; at < 64; at += 32) {
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(word >> at)), source);
    const __m256i kept = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bools + at), _mm256_and_si256(kept, one));
  }
}

LAYERCOOP_AVX2 void unpack_avx2(const std::uint64_t* packed, std::int64_t count, int n_players, std::uint8_t* bools) {
  const int rest = n_players % 64;
  alignas(32) std::uint8_t tail[64];
  for (std::int64_t row = 0; row < count; ++row) {
    for (int full = n_players / 64; full > 0; --full, bools += 64) unpack64_avx2(*packed++, bools);
    if (rest == 0) continue;
    unpack64_avx2(*packed++, tail);
    std::memcpy(bools, tail, static_cast<std::size_t>(rest));
    bools += rest;
  }
}

LAYERCOOP_AVX512 void pack_avx512(const std::uint8_t* bools, std::int64_t count, int n_players, std::uint64_t* packed) {
  const int rest = n_players % 64;
  const __mmask64 lanes = (std::uint64_t{1} << rest) - 1;
  for (std::int64_t row = 0; row < count; ++row) {
    for (int full = n_players / 64; full > 0; --full, bools += 64) {
      const __m512i bytes = _mm512_loadu_si512(bools);
      *packed++ = _mm512_test_epi8_mask(bytes, bytes);
    }
    if (rest == 0) continue;
    const __m512i bytes = _mm512_maskz_loadu_epi8(lanes, bools);
    *packed++ = _mm512_test_epi8_mask(bytes, bytes);
    bools += rest;
  }
}

LAYERCOOP_AVX512 void unpack_avx512(const std::uint64_t* packed, std::int64_t count, int n_players,
                                    std::uint8_t* bools) {
  const int rest = n_players % 64;
  const __mmask64 lanes = (std::uint64_t{1} << rest) - 1;
  for (std::int64_t row = 0; row < count; ++row) {
    for (int full = n_players / 64; full > 0; --full, bools += 64) {
      _mm512_storeu_si512(bools, _mm512_maskz_set1_epi8(*packed++, 1));
    }
    if (rest == 0) continue;
    _mm512_mask_storeu_epi8(bools, lanes, _mm512_maskz_set1_epi8(*packed++, 1));
    bools += rest;
  }
}

constexpr cpu::Versions<PackRows> kPack{pack_portable, pack_avx2, pack_avx512};
constexpr cpu::Versions<UnpackRows> kUnpack{unpack_portable, unpack_avx2, unpack_avx512};

#else

constexpr cpu::Versions<PackRows> kPack{pack_portable};
constexpr cpu::Versions<UnpackRows> kUnpack{unpack_portable};

#endif

// Reverses the bits: reversed words compare as masks do, player 0 first.
std::uint64_t reverse_bits(std::uint64_t x) {
  x = ((x >> 1) & 0x5555555555555555) | ((x & 0x5555555555555555) << 1);
  x = ((x >> 2) & 0x3333333333333333) | ((x & 0x3333333333333333) << 2);
  x = ((x >> 4) & 0x0f0f0f0f0f0f0f0f) | ((x & 0x0f0f0f0f0f0f0f0f) << 4);
  return __builtin_bswap64(x);
}

struct Keyed {
  std::uint64_t key;
  std::int32_t row;
};

// One stable counting pass for each byte that differs, lowest byte first; `spare` is as large as `items`.
void radix_sort(std::vector<Keyed>& items, std::vector<Keyed>& spare) {
  std::array<std::array<std::int32_t, 256>, 8> counts{};
  for (const Keyed& item : items) {
    for (std::size_t byte = 0; byte < 8; ++byte) ++counts[byte][(item.key >> (8 * byte)) & 0xff];
  }
  for (std::size_t byte = 0; byte < 8; ++byte) {
    auto& offsets = counts[byte];
    const auto digit = [byte](const Keyed& item) { return (item.key >> (8 * byte)) & 0xff; };
    if (static_cast<std::size_t>(offsets[digit(items.front())]) == items.size()) continue;
    std::int32_t begin = 0;
    for (std::int32_t& offset : offsets) {
      const std::int32_t in_bucket = offset;
      offset = begin;
      begin += in_bucket;
    }
    for (const Keyed& item : items) spare[static_cast<std::size_t>(offsets[digit(item)]++)] = item;
    items.swap(spare);
  }
}

// Input rows in lexicographic order of their masks, equal masks in input order.
std::vector<Keyed> sorted_rows(const std::uint64_t* packed, std::int64_t count, int n_words) {
  std::vector<Keyed> items(static_cast<std::size_t>(count));
  std::vector<Keyed> spare(items.size());
  for (std::size_t row = 0; row < items.size(); ++row) items[row].row = static_cast<std::int32_t>(row);
  if (items.empty()) return items;
  for (int word = n_words - 1; word >= 0; --word) {
    for (Keyed& item : items) item.key = reverse_bits(packed[std::int64_t{item.row} * n_words + word]);
    radix_sort(items, spare);
  }
  return items;
}

}  // namespace

void pack_masks(const std::uint8_t* bools, std::int64_t count, int n_players, std::uint64_t* packed) {
  PackRows* const pack = kPack.get();
  cpu::parallel_for(count, rows_per_range(n_players), [=](std::int64_t begin, std::int64_t end) {
    pack(bools + begin * n_players, end - begin, n_players, packed + begin * words(n_players));
  });
}

void unpack_masks(const std::uint64_t* packed, std::int64_t count, int n_players, std::uint8_t* bools) {
  UnpackRows* const unpack = kUnpack.get();
  cpu::parallel_for(count, rows_per_range(n_players), [=](std::int64_t begin, std::int64_t end) {
    unpack(packed + begin * words(n_players), end - begin, n_players, bools + begin * n_players);
  });
}

void popcounts(const std::uint64_t* packed, std::int64_t count, int n_words, std::int32_t* counts) {
  cpu::parallel_for(count, rows_per_range(8 * n_words), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      int kept = 0;
      for (int word = 0; word < n_words; ++word) kept += __builtin_popcountll(packed[row * n_words + word]);
      counts[row] = kept;
    }
  });
}

void check_packed(const std::uint64_t* packed, std::int64_t count, int n_players) {
  if (n_players % 64 == 0) return;
  const int n_words = words(n_players);
  cpu::parallel_for(count, rows_per_range(8 * n_words), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      if (packed[(row + 1) * n_words - 1] >> (n_players % 64) == 0) continue;
      throw std::invalid_argument("packed: row " + std::to_string(row) + " has a bit set past the last of " +
                                  std::to_string(n_players) + " players; such bits must be 0");
    }
  });
}

int SortedMasks::last_kept_below(std::int64_t mask, int end) const {
  const std::uint64_t* const row = rows.data() + mask * n_words;
  int word = end / 64;
  std::uint64_t bits = word < n_words ? row[word] & ((std::uint64_t{1} << (end % 64)) - 1) : 0;
  while (bits == 0) {
    if (--word < 0) return -1;
    bits = row[word];
  }
  return 64 * word + 63 - __builtin_clzll(bits);
}

int SortedMasks::kept_from(std::int64_t mask, int begin) const {
  const std::uint64_t* const row = rows.data() + mask * n_words;
  int word = begin / 64;
  int kept = __builtin_popcountll(row[word] >> (begin % 64));
  while (++word < n_words) kept += __builtin_popcountll(row[word]);
  return kept;
}

int SortedMasks::first_difference(std::int64_t a, std::int64_t b) const {
  const std::uint64_t* const row_a = rows.data() + a * n_words;
  const std::uint64_t* const row_b = rows.data() + b * n_words;
  int word = 0;
  while (row_a[word] == row_b[word]) ++word;
  return 64 * word + __builtin_ctzll(row_a[word] ^ row_b[word]);
}

SortedMasks sort_masks(const std::uint64_t* packed, std::int64_t count, int n_players) {
  if (count > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("masks: " + std::to_string(count) + " are too many; at most 2147483647");
  }
  SortedMasks sorted;
  sorted.n_players = n_players;
  sorted.n_words = words(n_players);
  sorted.inverse.resize(static_cast<std::size_t>(count));
  sorted.rows.reserve(static_cast<std::size_t>(count * sorted.n_words));
  sorted.unique_rows.reserve(static_cast<std::size_t>(count));
  for (const Keyed& item : sorted_rows(packed, count, sorted.n_words)) {
    const std::uint64_t* const row = packed + std::int64_t{item.row} * sorted.n_words;
    if (sorted.rows.empty() || !std::equal(row, row + sorted.n_words, sorted.rows.end() - sorted.n_words)) {
      sorted.rows.insert(sorted.rows.end(), row, row + sorted.n_words);
      sorted.unique_rows.push_back(item.row);
    }
    sorted.inverse[static_cast<std::size_t>(item.row)] = sorted.size() - 1;
  }
  return sorted;
}

}  // namespace layercoop
