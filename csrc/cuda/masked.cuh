// Selecting weights by the bits of a mask: what mask_apply and mask_apply_many_ do with a chunk of one tensor.
//
// The lanes of a warp read and write 16 bytes each, side by side, and a thread has four such reads on their way before
// it writes the first: a multiprocessor has 64 KB and more in flight, three times what latency x bandwidth asks for on
// an H100. That is where one row of bits goes on through the tensor, as in all layers whose rows are whole bytes. In
// other tensors a thread takes 16 bytes at a time where rows and pointers allow it, or single elements, side by side as
// well.
#pragma once

#include "elements.cuh"

namespace secateur::cuda {

// 16 bytes: one access. Words, not elements: 16-bit ones would take a register each.
template <class T>
struct alignas(16) SECATEUR_ANY_TYPE Pack {
  static constexpr int kLanes = 16 / sizeof(T);
  uint32_t word[4];

  // Zeroes the lanes whose bits are not set.
  SECATEUR_DEVICE void select(uint32_t keep) {
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2)
        word[i] &= (keep >> 2 * i & 1 ? 0xffffu : 0) | (keep >> (2 * i + 1) & 1 ? 0xffff0000u : 0);
      else if (!(keep >> i * 4 / sizeof(T) & 1)) word[i] = 0;
    }
  }
};

inline constexpr int kAhead = 4;  // accesses of a thread on their way together
inline constexpr int kChunkThreads = 256;

template <class T>
inline constexpr int64_t kChunk = int64_t{kChunkThreads} * kAhead * Pack<T>::kLanes;  // elements: 16 KB
template <class T>
int64_t chunks_of(int64_t elements) {
  return elements / kChunk<T> + (elements % kChunk<T> != 0);
}

template <class T>
struct Masked {
  using P = Pack<T>;
  const T* w;
  T* y;  // may be w
  const uint8_t* mask;
  int64_t elements;
  int64_t columns;   // of a row of the mask, whose bits start on a byte
  int64_t channels;  // of memory that lies [row][columns / channels][channels]; 0: as the mask does

  // The bits of one element and those after it, up to the end of its byte.
  SECATEUR_DEVICE uint32_t bits(int64_t element) const {
    const int64_t row = divide(element, columns), at = element - row * columns;
    return bits_in_row(mask + row * (columns / 8 + (columns % 8 != 0)), at);
  }
  SECATEUR_DEVICE static uint32_t bits_in_row(const uint8_t* row, int64_t at) {
    return static_cast<uint32_t>(row[at >> 3]) >> (at & 7);
  }

  // The bits of `count` elements of a row from one on, whose places in the mask are `columns / channels` apart.
  SECATEUR_DEVICE uint32_t transposed_bits(int64_t element, int count) const {
    const int64_t row = divide(element, columns), at = element - row * columns, inner = divide(columns, channels);
    const uint8_t* const of_row = mask + row * (columns / 8 + (columns % 8 != 0));
    int64_t pixel = divide(at, channels), channel = at - pixel * channels;
    uint32_t found = 0;
    for (int lane = 0; lane < count; ++lane) {
      found |= (bits_in_row(of_row, channel * inner + pixel) & 1) << lane;
      if (++channel == channels) channel = 0, ++pixel;
    }
    return found;
  }

  SECATEUR_DEVICE P load(int64_t at) const {
    return *reinterpret_cast<const P*>(w + at);  // nvcc makes 16 loads of bytes of a memcpy here
  }
  SECATEUR_DEVICE void store(int64_t at, P v, uint32_t keep) const {
    v.select(keep);
    *reinterpret_cast<P*>(y + at) = v;
  }

  // One row of bits: many accesses on their way together.
  template <class Thread>
  SECATEUR_DEVICE void flat(const Thread& thread, int64_t begin) const {
    P v[kAhead];
    uint32_t keep[kAhead];
    const int64_t first = begin + int64_t{thread.thread()} * P::kLanes;
    SECATEUR_UNROLLED
    for (int k = 0; k < kAhead; ++k) {
      const int64_t at = first + k * (kChunk<T> / kAhead);
      if (at + P::kLanes > elements) break;
      v[k] = load(at);
      keep[k] = bits_in_row(mask, at);
    }
    SECATEUR_UNROLLED
    for (int k = 0; k < kAhead; ++k) {
      const int64_t at = first + k * (kChunk<T> / kAhead);
      if (at + P::kLanes > elements) break;
      store(at, v[k], keep[k]);
    }
    const int rest = static_cast<int>(elements % P::kLanes);  // what is left after the last pack
    if (begin + kChunk<T> >= elements && thread.thread() < rest) one<false>(elements - rest + thread.thread());
  }

  template <bool kTransposed>
  SECATEUR_DEVICE void one(int64_t at) const {
    const T v = w[at];
    y[at] = (kTransposed ? transposed_bits(at, 1) : bits(at)) & 1 ? v : T{};
  }

  // A block's threads together: kChunk<T> elements.
  template <bool kTransposed, class Thread>
  SECATEUR_DEVICE void chunk(const Thread& thread, int64_t number) const {
    const int64_t begin = number * kChunk<T>, end = begin + kChunk<T> < elements ? begin + kChunk<T> : elements;
    const bool aligned = (reinterpret_cast<uintptr_t>(w) | reinterpret_cast<uintptr_t>(y)) % sizeof(P) == 0;
    if (aligned && !kTransposed && columns == elements) {
      flat(thread, begin);
    } else if (aligned && columns % P::kLanes == 0) {  // a pack lies in one row, and in one byte of the mask
      SECATEUR_ROLLED
      for (int64_t at = begin + int64_t{thread.thread()} * P::kLanes; at < end; at += kChunkThreads * P::kLanes)
        store(at, load(at), kTransposed ? transposed_bits(at, P::kLanes) : bits(at));
    } else {
      SECATEUR_ROLLED
      for (int64_t at = begin + thread.thread(); at < end; at += kChunkThreads) one<kTransposed>(at);
    }
  }
};

}  // namespace secateur::cuda
