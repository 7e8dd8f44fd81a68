// Twice as many floats, as two vectors. What each function does stands in floats_portable.h; the including file has
// defined LAYERCOOP_INLINE.
#pragma once

#include <cstring>

namespace layercoop::simd {
namespace {

template <typename Half>
struct Pair {
  static constexpr int kLanes = 2 * Half::kLanes;
  Half low;
  Half high;

  Pair() = default;
  LAYERCOOP_INLINE Pair(Half low, Half high) : low(low), high(high) {}
  LAYERCOOP_INLINE Pair(float value) : low(value), high(value) {}

  template <typename T>
  LAYERCOOP_INLINE static Pair load(const T* p) {
    return {Half::load(p), Half::load(p + Half::kLanes)};
  }
  // The first n; the other lanes are 0.
  template <typename T>
  LAYERCOOP_INLINE static Pair load_first(const T* p, int n) {
    T all[kLanes] = {};
    std::memcpy(all, p, static_cast<std::size_t>(n) * sizeof(T));
    return load(all);
  }
  // The first n lanes.
  template <typename T>
  LAYERCOOP_INLINE friend void store_first(T* p, int n, Pair a) {
    T all[kLanes];
    store(all, a);
    std::memcpy(p, all, static_cast<std::size_t>(n) * sizeof(T));
  }
  template <typename T>
  LAYERCOOP_INLINE friend void store(T* p, Pair a) {
    store(p, a.low);
    store(p + Half::kLanes, a.high);
  }
  template <typename T>
  LAYERCOOP_INLINE friend Pair rounded(Pair a, const T* p) {
    return {rounded(a.low, p), rounded(a.high, p)};
  }

  LAYERCOOP_INLINE friend Pair operator+(Pair a, Pair b) { return {a.low + b.low, a.high + b.high}; }
  LAYERCOOP_INLINE friend Pair operator-(Pair a, Pair b) { return {a.low - b.low, a.high - b.high}; }
  LAYERCOOP_INLINE friend Pair operator*(Pair a, Pair b) { return {a.low * b.low, a.high * b.high}; }
  LAYERCOOP_INLINE friend Pair operator/(Pair a, Pair b) { return {a.low / b.low, a.high / b.high}; }
  LAYERCOOP_INLINE friend Pair fma(Pair a, Pair b, Pair c) {
    return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
  }
  LAYERCOOP_INLINE friend Pair max(Pair a, Pair b) { return {max(a.low, b.low), max(a.high, b.high)}; }
  LAYERCOOP_INLINE friend Pair min(Pair a, Pair b) { return {min(a.low, b.low), min(a.high, b.high)}; }
  LAYERCOOP_INLINE friend Pair sqrt(Pair a) { return {sqrt(a.low), sqrt(a.high)}; }
  LAYERCOOP_INLINE friend Pair round(Pair a) { return {round(a.low), round(a.high)}; }
  LAYERCOOP_INLINE friend Pair power_of_two(Pair n) { return {power_of_two(n.low), power_of_two(n.high)}; }
  LAYERCOOP_INLINE friend Pair select_first(int n, Pair a, Pair b) {
    return {select_first(n, a.low, b.low), select_first(n - Half::kLanes, a.high, b.high)};
  }
  LAYERCOOP_INLINE friend float total(Pair a) { return total(a.low + a.high); }
  LAYERCOOP_INLINE friend float largest(Pair a) { return largest(max(a.low, a.high)); }
};

}  // namespace
}  // namespace layercoop::simd
