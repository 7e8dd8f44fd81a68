#include "cpu/dispatch.h"
#if LAYERCOOP_X86

#define LAYERCOOP_TARGET LAYERCOOP_AVX512_BF16
#include "decode/dots_avx512.h"

#include "decode/product_kernels_impl.h"

namespace layercoop::decode {
namespace {

// bf16 weights times inputs rounded to bf16, two columns at a time.
struct Bf16Dots {
  static constexpr int most_rows = kFloatRows;
  static constexpr int tiles_of(int rows) { return float_tiles(rows); }

  template <int rows, int tiles>
  static LAYERCOOP_INLINE void run(const std::uint8_t* weights, std::int64_t tile_bytes, const InputRows& inputs,
                                   std::int64_t row, Floats16 (&sums)[tiles][rows]) {
    const std::int64_t stride = inputs.stride;
    const std::uint16_t* x = inputs.bf16 + row * stride;
    const std::int64_t pairs = tile_bytes / kLine;
    for (std::int64_t k = 0; k < pairs; ++k) {
#pragma GCC unroll 8
      for (int t = 0; t < tiles; ++t) {
        const __m512i pair = bytes_at(weights + t * tile_bytes + k * kLine);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
          const __m512i factor = four(reinterpret_cast<const std::int8_t*>(x + r * stride + 2 * k));
          sums[t][r] = _mm512_dpbf16_ps(sums[t][r].x, (__m512bh)pair, (__m512bh)factor);
        }
      }
    }
  }
};

}  // namespace

Product* const kBf16Dots = product<Bf16Dots>;
}  // namespace layercoop::decode

#endif
