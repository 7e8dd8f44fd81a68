// The table of the kernels that quantise a group of weights. All versions find the same bits.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "decode/quantise.h"

namespace layercoop::decode {

// A group's weights; past the last column the first weight is repeated.
struct Group {
  alignas(32) float w[kGroup];
  int n;
  // The lowest and highest weight; the lowest is never -0.
  float low;
  float high;
};

// A scale and a min.
struct Line {
  float scale;
  float low;
};

// Points of an int4 grid.
constexpr int kPoints = 16;

struct QuantiseKernels {
  // Sets n, low and high of a group from its weights. False if one is not finite.
  bool (*measure)(int n, Group& group);

  // The line of least squared error among those tried, rounded to fp16, and its integers. Throws std::invalid_argument
  // where a number is beyond fp16.
  Line (*best_int8)(const Group& group, std::int8_t* q);
  Line (*best_int4)(const Group& group, std::uint8_t* q);

  // Writes the distinct weights in ascending order and returns their number; -1 if there are more than kPoints.
  int (*distinct)(const Group& group, float* found);

  // Bit i, i < count <= 64: 0 if some weight is not a multiple of the fp16 number with bits first + i, rounded to the
  // origin; 1 if none was found. Bits of numbers that are not positive are undefined.
  std::uint64_t (*scales)(const Group& group, int first, int count, Origin origin);

  // Bit t, 1 <= t < kPoints: 0 if it is certain that the weights are not multiples of largest / t, else 1.
  std::uint32_t (*tops)(const Group& group, float largest, Origin origin);

  // Whether every weight is scale * q + low, computed in fp32 and rounded to the origin, with q from `least` to `most`.
  // If so, q is filled.
  bool (*gives_back)(const Group& group, Origin origin, float scale, float low, int least, int most, std::int32_t* q);
};

extern const QuantiseKernels kQuantiseKernelsPortable, kQuantiseKernelsAvx2, kQuantiseKernelsNeon;

}  // namespace layercoop::decode
