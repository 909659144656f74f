// A program laid out for one image size: stores in one arena, steps with their kernels chosen.
#pragma once

#include <array>
#include <map>

#include "engine/program/program.h"
#include "engine/steps/conv/float_conv.h"
#include "engine/steps/int8/int8_conv.h"
#include "engine/steps/step.h"
#include "random_planner.h"
#include "records.h"
#include "step_maker.h"

namespace secateur::engine {

class Plan {
 public:
  Plan(const Program& program, const std::vector<std::array<int64_t, 2>>& sizes, const cpu::EngineKernels& kernels,
       const cpu::Int8Kernels& quads, Kernels asked_for);
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // Chooses each convolution's kernel: by measurement within `budget` seconds, by the cost model if `budget` is
  // negative. The gain from zeros in activations is measured on `example`, layer by layer as the image goes through,
  // and kept in `active`. Without an example it is taken from `active`.
  void choose(double budget, const std::vector<const float*>& example, Kernels kernels,
              std::map<const ConvAttributes*, ActiveChoice>& active);

  // Steps of one image; steps of the whole batch, which follow.
  const Steps& image_steps() const { return made_.image; }
  const Steps& batch_steps() const { return made_.batch; }
  const Program& program() const { return program_; }
  int64_t arena_floats() const { return arena_floats_; }
  int64_t scratch_floats(int64_t batch) const;
  // F of a rows value; [C, H, W] of a planes value.
  int64_t features(int value) const { return features_[value]; }
  std::array<int64_t, 3> shape(int value) const { return shapes_[value]; }
  std::vector<StepReport> report() const;

 private:
  void place_stores(const std::vector<Record>& records);
  void choose_by_time(double until, const std::vector<const float*>& example, Kernels kernels,
                      std::map<const ConvAttributes*, ActiveChoice>& active);
  void choose_at_random(bool zeros_wanted, const std::vector<const float*>& example, Kernels kernels,
                        std::map<const ConvAttributes*, ActiveChoice>& active);
  void place_lists();

  const Program& program_;
  const cpu::EngineKernels& kernels_;
  const cpu::Int8Kernels& quads_;
  const std::optional<RandomPlanner> random_ = RandomPlanner::from_environment();  // replaces measuring

  std::vector<Store> stores_;
  std::vector<int64_t> features_;
  std::vector<std::array<int64_t, 3>> shapes_;

  MadeSteps made_;
  std::vector<FloatConvStep*>& convs_ = made_.convs;
  std::vector<Int8ConvStep*>& int8_convs_ = made_.int8_convs;
  int64_t planes_floats_ = 0, arena_floats_ = 0;  // the planes; planes and lists
};

}  // namespace secateur::engine
