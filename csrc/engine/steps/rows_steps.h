// Steps over rows [N, F]: linear layers, elementwise, concat, copies to the caller.
#pragma once

#include "engine/program/layers.h"
#include "engine/program/program.h"
#include "step.h"

namespace secateur::engine {

// features: of each value, from the plan.
std::unique_ptr<Step> make_linear(const Op& op, const cpu::EngineKernels& kernels);
std::unique_ptr<Step> make_rows_map(const Op& op, int64_t features, const cpu::EngineKernels& kernels);
std::unique_ptr<Step> make_rows_concat(const Op& op, std::vector<int64_t> features);

}  // namespace secateur::engine
