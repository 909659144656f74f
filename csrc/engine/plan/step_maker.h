// The steps of a plan as kinds make them: what they need to know, and where their steps go.
#pragma once

#include <memory>

#include "plan.h"

namespace secateur::engine {

class StepMaker {
 public:
  StepMaker(Plan& plan, const Records& records, Kernels asked_for)
      : plan_(plan), records_(records), asked_for_(asked_for), shop_{plan.stores_, plan.kernels_, plan.quads_} {}
  void make(const Record& record);

  // ---- for the kinds ----

  const Workshop& shop() const { return shop_; }
  Kernels asked_for() const { return asked_for_; }
  // Where a test wants choices at random.
  const std::optional<RandomPlanner>& random() const { return plan_.random_; }
  const Value& value(int v) const { return plan_.program_.values()[v]; }
  bool is_bytes(int store) const { return store >= 0 && plan_.stores_[store].bytes; }
  int64_t features(int v) const { return plan_.features_[v]; }

  // A step of one image; of rows that no planes depend on, of the whole batch.
  void add(std::unique_ptr<Step> step) { steps_->push_back(std::move(step)); }
  // A step that may leave the frame of the store y to another one.
  void add_framed(std::unique_ptr<FramedStep> step, int y);
  // Convolutions, of which the plan chooses how they work.
  void add_conv(std::unique_ptr<ActiveConvStep> conv, int y);
  void add_conv(std::unique_ptr<BlockConvStep> conv, int y);

 private:
  Plan& plan_;
  const Records& records_;
  Kernels asked_for_;
  Workshop shop_;
  Steps* steps_ = nullptr;
};

}  // namespace secateur::engine
