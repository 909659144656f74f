// One call of a plan: images on threads of their own, what is left over and the batch's rows shared between them.
#pragma once

#include <functional>

#include "engine/plan/plan.h"
#include "engine/steps/step.h"

namespace secateur::engine {

// Calls f(begin, end) so that [0, n) is covered, on as many threads as it likes; returns when all have.
using Parallel = std::function<void(int64_t n, const std::function<void(int64_t, int64_t)>& f)>;

// call.inputs, call.outputs and call.batch are set; rows are filled in here. step_ms, if any: milliseconds of every
// step, image steps first, as they followed each other (batch 1 is what makes sense).
void run(const Plan& plan, const Program& program, Call& call, int64_t threads, const Parallel& parallel,
         std::vector<double>* step_ms = nullptr);

}  // namespace secateur::engine
