// Reads and writes the bits of a row, 16 at a time, never past the row's last byte.
#pragma once

#include <cstdint>

namespace secateur::cpu {
namespace {

inline uint32_t load_bits(const uint8_t* mask, int64_t element) {
  const uint8_t* p = mask + element / 8;
  return uint32_t{p[0]} | uint32_t{p[1]} << 8;
}
inline void store_bits(uint8_t* mask, int64_t element, uint32_t bits) {
  uint8_t* p = mask + element / 8;
  p[0] = static_cast<uint8_t>(bits);
  p[1] = static_cast<uint8_t>(bits >> 8);
}
// The last 1..15 elements of a row take one byte or two.
inline uint32_t load_tail_bits(const uint8_t* mask, int64_t element, int64_t count) {
  const uint8_t* p = mask + element / 8;
  return uint32_t{p[0]} | (count > 8 ? uint32_t{p[1]} << 8 : 0);
}
inline void store_tail_bits(uint8_t* mask, int64_t element, int64_t count, uint32_t bits) {
  uint8_t* p = mask + element / 8;
  bits &= (1u << count) - 1;  // unused bits of the last byte are zero
  p[0] = static_cast<uint8_t>(bits);
  if (count > 8) p[1] = static_cast<uint8_t>(bits >> 8);
}

// The tail of a row, padded with zeros to 16 lanes, so that full vectors and tails share one body.
template <class T>
struct Tail {
  T lane[16] = {};
  Tail() = default;
  Tail(const T* p, int64_t count) {
    for (int64_t i = 0; i < count; ++i) lane[i] = p[i];
  }
  void store(T* p, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) p[i] = lane[i];
  }
};

}  // namespace
}  // namespace secateur::cpu
