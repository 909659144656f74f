#include "plan.h"

#include <algorithm>

#include "plan_builder.h"
#include "roofline.h"
#include "step_maker.h"

namespace secateur::engine {

Plan::Plan(const Program& program, const std::vector<std::array<int64_t, 2>>& sizes, const cpu::EngineKernels& kernels,
           const cpu::Int8Kernels& quads, Kernels asked_for)
    : program_(program), kernels_(kernels), quads_(quads) {
  Records made = PlanBuilder(program, sizes).build();
  stores_ = std::move(made.stores);
  features_ = std::move(made.features);
  shapes_ = std::move(made.shapes);
  place_stores(made.records);
  planes_floats_ = arena_floats_ = (arena_floats_ + kLanes - 1) / kLanes * kLanes;
  StepMaker steps(program, made, {stores_, kernels, quads}, features_, random_, asked_for, made_);
  for (const Record& record : made.records) steps.make(record);
}

int64_t Plan::scratch_floats(int64_t batch) const {
  int64_t n = 0;
  for (const auto& step : made_.image) n = std::max(n, step->scratch_floats(1));
  for (const auto& step : made_.batch) n = std::max(n, step->scratch_floats(batch));
  return n;
}

std::vector<StepReport> Plan::report() const {
  std::vector<StepReport> all;
  for (const auto& step : made_.image) all.push_back(step->report());
  for (const auto& step : made_.batch) all.push_back(step->report());
  const double rate = load_bound_rate(kernels_);
  for (StepReport& r : all) r.floor_ms = r.multiply_adds / rate;
  return all;
}

}  // namespace secateur::engine
