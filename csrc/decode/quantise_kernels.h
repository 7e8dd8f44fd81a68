// What quantising a group of weights takes, once an instruction set. All versions find the same bits.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "decode/quantise.h"

namespace layercoop::decode {

// A group's weights; past the last column the first one again.
struct Group {
  alignas(32) float w[kGroup];
  int n;
  // Of all of them; the lowest is never -0.
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
  // Sets n, low and high of a group whose weights are there. False where one is not finite.
  bool (*measure)(int n, Group& group);

  // The line of least squared error among those tried, its numbers as they are kept in fp16, and its integers. Throws
  // std::invalid_argument where a number is beyond fp16.
  Line (*best_int8)(const Group& group, std::int8_t* q);
  Line (*best_int4)(const Group& group, std::uint8_t* q);

  // The distinct weights, ascending, of equal ones the first; -1 where there are more than kPoints.
  int (*distinct)(const Group& group, float* found);

  // Bit i, i < count <= 64: whether every weight may be a whole multiple of the fp16 number of bits first + i, rounded
  // to the origin: 0 is certain. Of numbers that are not positive nothing is said.
  std::uint64_t (*scales)(const Group& group, int first, int count, Origin origin);

  // Bit t, 1 <= t < kPoints: whether all weights may be multiples of one step, the largest t times it. 0 is certain.
  std::uint32_t (*tops)(const Group& group, float largest, Origin origin);

  // Whether every weight is scale * q + low, computed in fp32 and rounded to the origin, with q from `least` to `most`;
  // if so, q is filled.
  bool (*gives_back)(const Group& group, Origin origin, float scale, float low, int least, int most, std::int32_t* q);
};

extern const QuantiseKernels kQuantiseKernelsPortable, kQuantiseKernelsAvx2;

}  // namespace layercoop::decode
