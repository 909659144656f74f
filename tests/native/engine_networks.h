// Small networks for the engine, built as its front end builds them, and calls on our own threads, not torch's.
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

// Convolutions with few and many zeros, a residual, pools, a concatenation, linear layers; float or int8.
Network real_network(Random& random);
Network byte_network(Random& random);

// Runs n items on `threads` threads: a Parallel for engine/run.h.
void on_threads(int64_t n, int64_t threads, const std::function<void(int64_t, int64_t)>& f);

// All outputs of one call, one after another.
std::vector<float> run_network(engine::HeldProgram& program, const std::vector<float>& x, int64_t batch,
                               std::array<int64_t, 2> size, int64_t threads);

}  // namespace secateur::test
