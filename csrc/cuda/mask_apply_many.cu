// mask_apply_many_: the masks of a whole network in one launch.
//
// The table of weights travels in the kernel's arguments, which take 4 KB on every driver: nothing is copied to the
// device first, nothing waits, and a CUDA graph holds the table by value. Blocks take chunks of one weight each, so
// that a weight is looked up once a chunk and not once an element, by all threads of the block alike.
#include <launch.h>
#include "masked.cuh"

namespace secateur::cuda {
namespace {

constexpr int kMost = 84;  // weights a launch

struct Entry {
  void* w;
  const uint8_t* mask;
  int64_t elements, columns, channels;  // as in Masked
  int64_t end;                          // chunks of this weight and those before it
};

template <class T>
struct MaskApplyMany {
  using Shared = NoShared;
  int64_t count;
  Entry entries[kMost];

  // The weight of a chunk: the first whose end lies beyond it.
  SECATEUR_DEVICE int64_t find(int64_t chunk) const {
    int64_t low = 0, high = count - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (entries[middle].end > chunk) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  template <class Thread>
  SECATEUR_DEVICE void run(const Thread& thread, Shared&) const {
    const int64_t chunks = entries[count - 1].end;
    for (int64_t chunk = thread.block(); chunk < chunks; chunk += thread.blocks()) {
      const int64_t which = find(chunk), before = which ? entries[which - 1].end : 0;
      const Masked<T> masked{static_cast<const T*>(entries[which].w),
                             static_cast<T*>(entries[which].w),
                             entries[which].mask,
                             entries[which].elements,
                             entries[which].columns,
                             entries[which].channels};
      if (masked.channels) masked.template chunk<true>(thread, chunk - before);
      else masked.template chunk<false>(thread, chunk - before);
    }
  }
};

template <class T>
Failure launch_for(const MaskedRows* weights, int64_t count, Queue queue) {
  static_assert(kThreads == kChunkThreads, "a block takes a chunk");
  MaskApplyMany<T> body;
  static_assert(sizeof body <= 4096, "what a kernel's arguments may take");
  body.count = 0;
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const MaskedRows& weight = weights[i];
    const int64_t elements = weight.rows * weight.columns;
    if (elements > 0) {
      // Rows of whole bytes are one long row, unless bits and memory differ in their order within each.
      const int64_t columns = weight.channels ? weight.columns : flat_view(weight.rows, weight.columns).columns;
      chunks += chunks_of<T>(elements);
      body.entries[body.count++] = {weight.w, weight.mask, elements, columns, weight.channels, chunks};
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
