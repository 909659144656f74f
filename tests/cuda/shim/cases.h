// What the groups of checks share: shapes that kernels get wrong, values in every element type, and where to run.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "cuda/elements.cuh"
#include "launch.h"

namespace checks {

using namespace secateur::cuda;

inline constexpr Queue kQueue{0, nullptr};
inline constexpr Order kOrders[] = {Order::kForward, Order::kReverse, Order::kShuffled};

struct Shape {
  int64_t rows, columns;
};
// Around a mask byte, a warp, a block, a block's worth of groups; odd and even strides; more work than any grid here.
inline const std::vector<Shape> kShapes = {{0, 5},    {3, 0},    {1, 1},    {5, 1},    {300, 1},  {1, 7},   {3, 7},
                                           {1, 8},    {3, 8},    {1, 9},    {3, 9},    {7, 12},   {2, 31},  {3, 32},
                                           {2, 33},   {64, 27},  {1, 255},  {3, 256},  {2, 257},  {9, 100}, {1, 2047},
                                           {2, 2048}, {1, 2049}, {5, 2056}, {3, 6151}, {1, 6144}, {257, 24}};
inline constexpr Shape kLarge{1, 1000003};
inline constexpr int64_t kOffsets[] = {0, 1, 3};

template <class T>
inline double number(T v) {
  return v;
}
inline double number(bf16 v) { return float_of_bits(uint32_t{v.bits} << 16); }
inline double number(f16 v) {  // by its definition
  const int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  const double sign = v.bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? std::nan("") : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}
template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

// Values in every element type, exact zeros and repeats among them.
template <class T>
T random_value(Random& random) {
  const double v = random.bits() % 10 == 0 ? 0.0 : random.uniform();
  if constexpr (sizeof(T) >= 4) return static_cast<T>(v);
  const float f = static_cast<float>(v);
  uint32_t u;
  std::memcpy(&u, &f, 4);
  T out;
  if constexpr (std::is_same_v<T, bf16>) out.bits = static_cast<uint16_t>(u >> 16);
  else if constexpr (std::is_same_v<T, f16>) {
    const int64_t scaled = std::llround(std::fabs(v) * 1024);  // some value near it; which one does not matter
    int e = 15;
    int64_t m = scaled;
    while (m && m < 1024) m *= 2, --e;
    out.bits = static_cast<uint16_t>((v < 0 ? 0x8000 : 0) | (m ? (m == 2048 ? 15 << 10 : e << 10 | (m & 1023)) : 0));
  } else out = static_cast<T>(u);
  return out;
}
template <class T>
void fill(Buffer<T>& buffer, Random& random) {
  for (int64_t i = 0; i < buffer.size(); ++i) buffer[i] = random_value<T>(random);
}
template <class T>
constexpr Element element() {
  if constexpr (std::is_same_v<T, float>) return Element::kF32;
  else if constexpr (std::is_same_v<T, double>) return Element::kF64;
  else if constexpr (std::is_same_v<T, bf16>) return Element::kBF16;
  else return Element::kF16;
}

// body(shape, offset) under every order of threads and several sizes of grid: three a case, or, for bodies that take
// long (fibers; many ways to lay the channels), one in four of those, in turn.
template <class Body>
void everywhere(const Body& body, bool slow = false) {
  int turn = 0;
  for (const Shape& shape : kShapes)
    for (int64_t offset : kOffsets) {
      grid().order = kOrders[(shape.columns + offset) % 3];
      for (int64_t blocks : {1, 3, 1000}) {
        if (slow && turn++ % 4 != 0) continue;  // 4 is prime to 3: every size comes round
        grid().most_blocks = blocks;
        body(shape, offset);
      }
    }
  grid().most_blocks = 7;
  body({1, 200008}, 0);
  body(kLarge, 1);
}

inline void check_mask_is(uint8_t* mask, const View& view, const std::vector<bool>& want, const char* what) {
  for (int64_t r = 0; r < view.rows; ++r)
    for (int64_t c = 0; c < view.bytes * 8; ++c) {
      const bool wanted = c < view.columns && want[r * view.columns + c];
      that(bit(mask + r * view.bytes, c) == wanted, "%s: bit %ld of row %ld of [%ld, %ld]", what, c, r, view.rows,
           view.columns);
    }
}

// The groups, by operator; main.cpp gives them names.
void mask_apply_group();
void mask_apply_many_group();
void mask_bits_group();
void transpose_bits_group();
void threshold_relu_group();
void statistics_threshold_group();
void at_the_threshold_group();
void bad_rows_group();
void deterministic_group();
void elements_group();
void empty_group();

}  // namespace checks
