// Small networks for the engine, built as its front builds them, and calls with threads of our own in place of torch's.
#pragma once

#include <memory>

#include "engine/plan/held_program.h"
#include "engine/run/run.h"
#include "testing.h"

namespace secateur::test {

using Sizes = std::vector<std::array<int64_t, 2>>;

struct Network {
  const char* name;
  std::shared_ptr<engine::HeldProgram> program;
  int64_t channels;  // of its one input
};

// Convolutions with few and many zeros, a residual, pools, a concatenation, linear layers; real values, or bytes.
Network real_network(Random& random);
Network byte_network(Random& random);

// n items on `threads` threads: Parallel as engine/run.h wants it.
void on_threads(int64_t n, int64_t threads, const std::function<void(int64_t, int64_t)>& f);

// All outputs of one call, one after another.
std::vector<float> run_network(engine::HeldProgram& program, const std::vector<float>& x, int64_t batch,
                               std::array<int64_t, 2> size, int64_t threads);

}  // namespace secateur::test
