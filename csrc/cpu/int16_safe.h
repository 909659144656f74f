// int16-safe blocks of int8 weights, for the code that packs them. On x86 without VNNI the kernels use vpmaddubsw. It
// adds the products of a quad's first two channels, and of its last two, in 16 bits with silent saturation. Two
// such weights are safe if they reach at most 128 to either side: 255 * 128 fits. If the kernels need int16-safe blocks
// (Int8Kernels::needs_int16_safe_blocks), a block beyond that is split into two blocks at the same place that add up to
// it. Then no 16-bit sum can overflow, for any input: the result is exact. Blocks that together reach at most 128 are
// stored as a pair: one vpmaddwd serves both. Includes no kernel header: its functions would be weak symbols here.
#pragma once

#include <cstdint>

namespace secateur::cpu {

inline int weight_at(uint32_t four, int i) { return static_cast<int8_t>(four >> (8 * i)); }

constexpr int kInt16SafeReach = 128;

// How far the first two weights of a block, and the last two, reach to either side.
struct Reach {
  int16_t up[2], down[2];
};
inline Reach reach_of(uint32_t four) {
  Reach r{};
  for (int i = 0; i < 4; ++i) {
    const int w = weight_at(four, i);
    r.up[i / 2] = static_cast<int16_t>(r.up[i / 2] + (w > 0 ? w : 0));
    r.down[i / 2] = static_cast<int16_t>(r.down[i / 2] - (w < 0 ? w : 0));
  }
  return r;
}
inline bool sum_fits_int16(const Reach& a, const Reach& b) {
  bool fit = true;
  for (int i = 0; i < 2; ++i) fit &= a.up[i] + b.up[i] <= kInt16SafeReach && a.down[i] + b.down[i] <= kInt16SafeReach;
  return fit;
}
inline bool is_int16_safe(uint32_t four) { return sum_fits_int16(reach_of(four), {}); }

// Half of each weight, rounded down, and the rest: both are int16-safe.
struct Int16SafeParts {
  uint32_t half, rest;
};
inline Int16SafeParts split_for_int16(uint32_t four) {
  Int16SafeParts h{0, 0};
  for (int i = 0; i < 4; ++i) {
    const int w = weight_at(four, i), half = w >> 1;
    h.half |= uint32_t{static_cast<uint8_t>(half)} << (8 * i);
    h.rest |= uint32_t{static_cast<uint8_t>(w - half)} << (8 * i);
  }
  return h;
}

}  // namespace secateur::cpu
