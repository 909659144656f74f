// Fills the halo after a step whose tasks each wrote only part of a plane.
#pragma once

#include "engine/steps/step.h"

namespace secateur::engine {

// Runs after all tasks of the step, channel by channel. On one thread the step fills its halos itself.
class HaloStep : public Step {
 public:
  HaloStep(const HaloedStep& of, const Store& y, const cpu::EngineKernels& kernels)
      : Step(of.name() + " (halo)"), of_(of), y_(y), kernels_(kernels) {}
  int64_t tasks() const override {
    return of_.leaves_halo() && !y_.fill.copies.empty() ? std::clamp<int64_t>(y_.planes() / 8, 1, 2) : 0;
  }
  void run(const Call&, const Worker& worker, int64_t, int64_t, int64_t task) const override {
    const Range r = part(y_.planes(), task, tasks());
    y_.fill_halos(kernels_, worker.arena, r.begin, r.end);
  }
  void run_all(const Call&, const Worker&, int64_t, int64_t) const override {}
  StepReport report() const override {
    StepReport r;
    r.name = name();
    r.kind = "halo";
    return r;
  }

 private:
  const HaloedStep& of_;
  const Store& y_;
  const cpu::EngineKernels& kernels_;
};

}  // namespace secateur::engine
