// One call of a plan: each thread takes whole images; leftover images and the batch's rows are shared among threads.
#pragma once

#include <functional>

#include "engine/plan/plan.h"
#include "engine/steps/step.h"

namespace secateur::engine {

// Calls f(begin, end) on ranges that cover [0, n), on any number of threads; returns when all calls have.
using Parallel = std::function<void(int64_t n, const std::function<void(int64_t, int64_t)>& f)>;

// call.inputs, call.outputs and call.batch must be set; run fills in the rows. step_ms, if not null: milliseconds of
// every step in order, image steps first (makes sense for batch 1).
void run(const Plan& plan, const Program& program, Call& call, int64_t threads, const Parallel& parallel,
         std::vector<double>* step_ms = nullptr);

}  // namespace secateur::engine
