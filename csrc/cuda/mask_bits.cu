// mask_pack, mask_unpack, and the bit transpose between logical and channels_last order.
//
// Floor of pack and unpack: 1.125 bytes an element. The transpose touches a mask only (1/32 of float32 weights), which
// lies in L2 after its producer or before its consumer.
#include <launch.h>
#include "elements.cuh"

namespace secateur::cuda {
namespace {

struct MaskPack {
  using Shared = NoShared;
  const uint8_t* keep;
  uint8_t* mask;
  View view;

  template <class Thread>
  SECATEUR_DEVICE void run(const Thread& thread, Shared&) const {
    grid_stride(thread, view.groups, [&](int64_t i) {
      const Group group = group_of(view, i);
      const Eight<uint8_t> v = load_8(keep + group.at, group.count);
      uint32_t bits = 0;
      for (int lane = 0; lane < 8; ++lane) bits |= static_cast<uint32_t>(v.lane[lane] != 0) << lane;
      mask[i] = static_cast<uint8_t>(bits);
    });
  }
};

struct MaskUnpack {
  using Shared = NoShared;
  const uint8_t* mask;
  uint8_t* keep;
  View view;

  template <class Thread>
  SECATEUR_DEVICE void run(const Thread& thread, Shared&) const {
    grid_stride(thread, view.groups, [&](int64_t i) {
      const Group group = group_of(view, i);
      const uint32_t bits = mask[i];
      Eight<uint8_t> v;
      for (int lane = 0; lane < 8; ++lane) v.lane[lane] = bits >> lane & 1;
      store_8(keep + group.at, v, group.count);
    });
  }
};

// 8 bits at any bit offset of a row of `bytes`; what lies past the row reads as 0.
SECATEUR_DEVICE uint32_t read_8(const uint8_t* row, int64_t bit, int64_t bytes) {
  const int64_t at = bit >> 3;
  uint32_t two = row[at];
  if (at + 1 < bytes) two |= static_cast<uint32_t>(row[at + 1]) << 8;
  return two >> (bit & 7) & 0xff;
}

// Transpose of an 8x8 bit matrix held in a word, one row a byte (Warren, Hacker's Delight, 7-3).
SECATEUR_DEVICE uint64_t transpose_8x8(uint64_t x) {
  uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aaull;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000cccc0000ccccull;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0ull;
  return x ^ t ^ (t << 28);
}

// a is a multiple of 8, so an 8x8 block is 8 whole bytes of the result and one thread's own. Neighbours write
// neighbouring bytes.
struct TransposeBlocks {
  using Shared = NoShared;
  const uint8_t* from;
  uint8_t* to;
  int64_t rows, a, b;

  SECATEUR_DEVICE void block(int64_t row, int64_t a0, int64_t b0) const {
    const int64_t bytes = a / 8 * b;
    const uint8_t* source = from + row * bytes;
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= static_cast<uint64_t>(read_8(source, (a0 + i) * b + b0, bytes)) << (8 * i);
    bits = transpose_8x8(bits);
    uint8_t* target = to + row * bytes + a0 / 8;
    for (int j = 0; j < 8; ++j)
      if (b0 + j < b) target[(b0 + j) * (a / 8)] = static_cast<uint8_t>(bits >> (8 * j));
  }

  template <class Thread>
  SECATEUR_DEVICE void run(const Thread& thread, Shared&) const {
    const int64_t across = a / 8, bands = (b + 7) / 8;
    grid_stride(thread, rows * bands * across, [&](int64_t i) {
      const int64_t band = divide(i, across), row = divide(band, bands);
      block(row, (i - band * across) * 8, (band - row * bands) * 8);
    });
  }
};

// Any a: a thread gathers the 8 bits of a byte of the result one by one. Eight times the loads of the above; met with
// maps of odd size (7x7) and few channels, whose masks are small.
struct TransposeBytes {
  using Shared = NoShared;
  const uint8_t* from;
  uint8_t* to;
  View view;  // columns = a * b
  int64_t a, b;

  template <class Thread>
  SECATEUR_DEVICE void run(const Thread& thread, Shared&) const {
    grid_stride(thread, view.groups, [&](int64_t i) {
      const int64_t row = divide(i, view.bytes), first = (i - row * view.bytes) * 8;
      const uint8_t* source = from + row * view.bytes;
      int64_t y = divide(first, a), x = first - y * a;
      uint32_t bits = 0;
      for (int lane = 0; lane < 8 && first + lane < view.columns; ++lane) {
        const int64_t bit = x * b + y;
        bits |= static_cast<uint32_t>(source[bit >> 3] >> (bit & 7) & 1) << lane;
        if (++x == a) x = 0, ++y;
      }
      to[i] = static_cast<uint8_t>(bits);
    });
  }
};

}  // namespace

Failure mask_pack(const uint8_t* keep, uint8_t* mask, const View& view, Queue queue) {
  return launch(MaskPack{keep, mask, view}, view.groups, queue);
}

Failure mask_unpack(const uint8_t* mask, uint8_t* keep, const View& view, Queue queue) {
  return launch(MaskUnpack{mask, keep, view}, view.groups, queue);
}

Failure transpose_bits(const uint8_t* from, uint8_t* to, int64_t rows, int64_t a, int64_t b, Queue queue) {
  if (a % 8 == 0) return launch(TransposeBlocks{from, to, rows, a, b}, rows * ((b + 7) / 8) * (a / 8), queue);
  const View view = view_of(rows, a * b);
  return launch(TransposeBytes{from, to, view, a, b}, view.groups, queue);
}

}  // namespace secateur::cuda
