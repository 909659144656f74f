// mask_apply: one read and one write of the weights, 1/8 byte of mask per element.
#pragma once

#include "bits.h"

namespace secateur::cpu {
namespace {

template <class T>
void mask_apply(const T* w, T* y, const uint8_t* mask, int64_t rows, int64_t columns, int64_t mask_stride) {
  for (int64_t r = 0; r < rows; ++r, w += columns, y += columns, mask += mask_stride) {
    int64_t i = 0;
    for (; i + 16 <= columns; i += 16) store_raw(y + i, keep(load_raw(w + i), load_bits(mask, i)));
    if (int64_t count = columns - i; count > 0) {
      Tail<T> tail(w + i, count);
      store_raw(tail.lane, keep(load_raw(tail.lane), load_tail_bits(mask, i, count)));
      tail.store(y + i, count);
    }
  }
}

inline void mask_pack(const uint8_t* keep, uint8_t* mask, int64_t columns) {
  int64_t i = 0;
  for (; i + 16 <= columns; i += 16) store_bits(mask, i, bits_of_bytes(keep + i));
  if (int64_t count = columns - i; count > 0) {
    Tail<uint8_t> tail(keep + i, count);
    store_tail_bits(mask, i, count, bits_of_bytes(tail.lane));
  }
}

inline void mask_unpack(const uint8_t* mask, uint8_t* keep, int64_t columns) {
  int64_t i = 0;
  for (; i + 16 <= columns; i += 16) bytes_of_bits(keep + i, load_bits(mask, i));
  if (int64_t count = columns - i; count > 0) {
    Tail<uint8_t> tail;
    bytes_of_bits(tail.lane, load_tail_bits(mask, i, count));
    tail.store(keep + i, count);
  }
}

}  // namespace
}  // namespace secateur::cpu
