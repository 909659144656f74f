// For those who write blocks of weights. On x86 without VNNI the kernels multiply with vpmaddubsw, which adds the
// products of a quad's first two channels, and of its last two, in 16 bits: beyond them it saturates, silently. 255 *
// 128 lies within. So where QuadKernels::pairs says so, a block in which two neighbours reach further than 128 to one
// side is written as two blocks at the same place, whose weights add up to its own: no sum of 16 bits can leave its
// range, whatever the input, and the result is exact. No include of a kernel file: its functions would be weak symbols
// there.
#pragma once

#include <cstdint>

namespace secateur::cpu {

inline int weight_at(uint32_t four, int i) { return static_cast<int8_t>(four >> (8 * i)); }

inline bool fits_pairs(uint32_t four) {
  for (int i = 0; i < 4; i += 2) {
    const int a = weight_at(four, i), b = weight_at(four, i + 1);
    if ((a > 0 ? a : 0) + (b > 0 ? b : 0) > 128 || (a < 0 ? a : 0) + (b < 0 ? b : 0) < -128) return false;
  }
  return true;
}

// Half of each weight, rounded down, and what is left: both fit.
struct Halves {
  uint32_t half, rest;
};
inline Halves halves_of(uint32_t four) {
  Halves h{0, 0};
  for (int i = 0; i < 4; ++i) {
    const int w = weight_at(four, i), half = w >> 1;
    h.half |= uint32_t{static_cast<uint8_t>(half)} << (8 * i);
    h.rest |= uint32_t{static_cast<uint8_t>(w - half)} << (8 * i);
  }
  return h;
}

}  // namespace secateur::cpu
