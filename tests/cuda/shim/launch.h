// The emulated grid: blocks x threads on the CPU, for the kernel bodies of csrc/cuda (see elements.cuh).
//
// Blocks run one after another. The threads of a block that waits are fibers, resumed in turn, each as far as its next
// wait; threads of other blocks run straight through. Knobs make it nastier than a GPU usually is: fewer blocks than
// the work needs, threads in reverse or shuffled order (a missing wait then changes the result), shared memory full of
// rubbish.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "cuda/kernels.h"
#include "fibers.h"

namespace secateur::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kWarpSize = 32;

// As `multiprocessors x blocks` would bound it, and how often a kernel was launched.
struct Grid {
  int64_t most_blocks = 3;
  Order order = Order::kForward;
  int64_t launches = 0;
};
inline Grid& grid() {
  static Grid the_grid;
  return the_grid;
}

struct EmulatedThread {
  int64_t the_block, the_blocks;
  int the_thread;
  Fibers* fibers;  // null where nothing may wait

  int64_t block() const { return the_block; }
  int64_t blocks() const { return the_blocks; }
  int thread() const { return the_thread; }
  int threads() const { return kThreads; }
  void sync_warp() const { fibers->wait(Fibers::kWarp); }
  void sync_block() const { fibers->wait(Fibers::kBlock); }
  void lower(int64_t* at, int64_t value) const {
    if (value < *at) *at = value;
  }
};

template <class Body>
Failure launch(const Body& body, int64_t threads, Queue) {
  if (threads <= 0) return nullptr;
  using Shared = typename Body::Shared;
  constexpr bool waits = !std::is_empty_v<Shared>;  // only what shares has a reason to wait
  Grid& g = grid();
  ++g.launches;
  const int64_t wanted = (threads + kThreads - 1) / kThreads, blocks = wanted < g.most_blocks ? wanted : g.most_blocks;
  static Fibers fibers(kThreads, kWarpSize);
  for (int64_t block = 0; block < blocks; ++block) {
    auto shared = std::make_unique<Shared>();
    std::memset(static_cast<void*>(shared.get()), 0xcd, sizeof(Shared));
    auto one = [&](int thread) { body.run(EmulatedThread{block, blocks, thread, waits ? &fibers : nullptr}, *shared); };
    if constexpr (waits) fibers.run(one, g.order);
    else
      for (int i = 0; i < kThreads; ++i) one(in_order(g.order, i, kThreads));
  }
  return nullptr;
}

inline Failure fill_bytes(void* at, int byte, size_t bytes, Queue) {
  std::memset(at, byte, bytes);
  return nullptr;
}
inline Failure fetch(void* host, const void* device, size_t bytes, Queue) {
  std::memcpy(host, device, bytes);
  return nullptr;
}

}  // namespace secateur::cuda
