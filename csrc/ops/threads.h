// Parallel loops of the operators: on torch's threads, and on one thread in a forked process.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace secateur::ops {

// Whether this process is a fork of the one that loaded the library. The threads that torch had before the fork do not
// exist here, and GNU's OpenMP waits for them forever: torch's own operators hang. Ours run on the calling thread.
bool forked();

inline int64_t num_threads() { return forked() ? 1 : static_cast<int64_t>(torch::stable::get_num_threads()); }

// Runs f(begin, end) over pieces of [begin, end), each at least `grain` long, in parallel.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (!forked()) torch::stable::parallel_for(begin, end, grain, f);
  else if (begin < end) f(begin, end);
}

}  // namespace secateur::ops
