// IEEE half and bfloat16 numbers as their bits, and scalar conversions.
#pragma once

#include <cstdint>
#include <cstring>

namespace layercoop {

// An IEEE half.
struct Fp16 {
  std::uint16_t bits;
};

// The upper half of an IEEE single.
struct Bf16 {
  std::uint16_t bits;
};

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float of_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float from_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity, NaN
  // The product shifts the exponent, and normalises a number that is subnormal as a half.
  return of_bits(sign | bits_of(of_bits(rest << 13) * 0x1p112f));
}

// Rounded to nearest, ties to even; infinity beyond 65,519.
inline std::uint16_t to_half(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  std::uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (rest < 0x38800000u) {
    // Subnormal as a half: the sum with 1/2 has multiples of 2^-24 in its last bits, rounded.
    return static_cast<std::uint16_t>(sign | (bits_of(of_bits(rest) + 0.5f) - 0x3f000000u));
  }
  rest += 0xfffu + (rest >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | (rest - 0x38000000u) >> 13);
}

inline float from_bf16(std::uint16_t bits) { return of_bits(static_cast<std::uint32_t>(bits) << 16); }

// Rounded to nearest, ties to even; x is not NaN.
inline std::uint16_t to_bf16(float x) {
  const std::uint32_t bits = bits_of(x);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace layercoop
