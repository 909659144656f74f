// mask_apply_many_: the masks of a whole network in one launch.
//
// The table of weights travels in the kernel's arguments, which take 4 KB on every driver: nothing is copied to the
// device first, nothing waits, and a CUDA graph holds the table by value. Blocks take chunks of one weight each, so
// that a weight is looked up once a chunk and not once an element, by all threads of the block alike.
#include <launch.h>
#include "elements.cuh"

namespace secateur::cuda {
namespace {

constexpr int64_t kChunk = 1024;  // groups: 4 a thread, 32 KB of float32
constexpr int kMost = 84;         // weights a launch

struct Row {
  void* w;
  const uint8_t* mask;
  int64_t groups;
  int64_t columns;   // of a row; of all rows where these are whole bytes
  int64_t channels;  // of channels_last memory; 0: the mask is in the order of memory
  int64_t end;       // chunks of this weight and those before it
};

// The mask's bits for `count` elements from `at` of a row on that lies [inner][channels]; the mask has
// [channels][inner].
SECATEUR_DEVICE uint32_t transposed_bits(const uint8_t* mask, int64_t at, int count, int64_t channels, int64_t inner) {
  int64_t pixel = divide(at, channels), channel = at - pixel * channels;
  uint32_t bits = 0;
  for (int lane = 0; lane < 8; ++lane) {
    if (lane >= count) break;
    const int64_t bit = channel * inner + pixel;
    bits |= (uint32_t{mask[bit >> 3]} >> (bit & 7) & 1) << lane;
    if (++channel == channels) channel = 0, ++pixel;
  }
  return bits;
}

template <class T>
struct MaskApplyMany {
  using Shared = NoShared;
  int64_t count;
  Row rows[kMost];

  // The weight of a chunk: the first whose end lies beyond it.
  SECATEUR_DEVICE int64_t find(int64_t chunk) const {
    int64_t low = 0, high = count - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (rows[middle].end > chunk) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  template <class Thread>
  SECATEUR_DEVICE void run(const Thread& thread, Shared&) const {
    const int64_t chunks = rows[count - 1].end;
    for (int64_t chunk = thread.block(); chunk < chunks; chunk += thread.blocks()) {
      const int64_t which = find(chunk), first = which ? rows[which - 1].end : 0;
      T* const w = static_cast<T*>(rows[which].w);
      const uint8_t* const mask = rows[which].mask;
      const int64_t groups = rows[which].groups, columns = rows[which].columns, channels = rows[which].channels;
      const int64_t bytes = columns / 8 + (columns % 8 != 0), begin = (chunk - first) * kChunk;
      const View view{groups == bytes ? 1 : 2, columns, bytes, groups};  // of the rows, only whether it is one counts
      const int64_t end = begin + kChunk < groups ? begin + kChunk : groups;
      for (int64_t i = begin + thread.thread(); i < end; i += thread.threads()) {
        const Group group = group_of(view, i);
        uint32_t bits;
        if (channels == 0) bits = mask[i];
        else {
          const int64_t row = divide(i, bytes);
          bits = transposed_bits(mask + row * bytes, group.at - row * columns, group.count, channels,
                                 divide(columns, channels));
        }
        Eight<T> v = load_8(w + group.at, group.count);
        for (int lane = 0; lane < 8; ++lane)
          if (!(bits >> lane & 1)) v.lane[lane] = T{};
        store_8(w + group.at, v, group.count);
      }
    }
  }
};

template <class T>
Failure launch_for(const MaskedRows* weights, int64_t count, Queue queue) {
  MaskApplyMany<T> body;
  static_assert(sizeof body <= 4096, "what a kernel's arguments may take");
  body.count = 0;
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const MaskedRows& weight = weights[i];
    // Bits that are not in the order of memory are counted within their row, so its rows stay apart.
    const View view = weight.channels ? view_of(weight.rows, weight.columns) : flat_view(weight.rows, weight.columns);
    if (view.groups > 0) {
      chunks += (view.groups + kChunk - 1) / kChunk;
      body.rows[body.count++] = {weight.w, weight.mask, view.groups, view.columns, weight.channels, chunks};
    }
    if (body.count == kMost || (i == count - 1 && body.count > 0)) {
      if (Failure failed = launch(body, chunks * kThreads, queue)) return failed;
      body.count = chunks = 0;
    }
  }
  return nullptr;
}

}  // namespace

Failure mask_apply_many(int64_t element_size, const MaskedRows* weights, int64_t count, Queue queue) {
  switch (element_size) {
    case 2: return launch_for<uint16_t>(weights, count, queue);
    case 4: return launch_for<uint32_t>(weights, count, queue);
    default: return launch_for<uint64_t>(weights, count, queue);
  }
}

}  // namespace secateur::cuda
