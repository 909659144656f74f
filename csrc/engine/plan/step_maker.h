// Lets kinds add the steps of a plan.
#pragma once

#include <memory>

#include "engine/program/program.h"
#include "engine/steps/conv/float_conv.h"
#include "engine/steps/int8/int8_conv.h"
#include "random_planner.h"
#include "records.h"

namespace secateur::engine {

// Allowed kernels of convolutions: the fastest, or, for tests, one kind wherever it is supported. kActiveIfSparse is
// kActive for images with at most a quarter of nonzeros; the others are convolved on planes.
enum class Kernels { kFastest, kPlanes, kActive, kActiveIfSparse, kBlocks, kBlocks4x4 };

struct MadeSteps {
  Steps image, batch;                 // of one image, then of the whole batch
  std::vector<FloatConvStep*> convs;  // among the steps: the plan chooses their kernels
  std::vector<Int8ConvStep*> int8_convs;
};

class StepMaker {
 public:
  // Everything but the records must outlive the steps.
  StepMaker(const Program& program, const Records& records, const StepContext& context,
            const std::vector<int64_t>& features, const std::optional<RandomPlanner>& random, Kernels asked_for,
            MadeSteps& made)
      : program_(program),
        records_(records),
        context_(context),
        features_(features),
        random_(random),
        asked_for_(asked_for),
        made_(made) {}
  void make(const Record& record);

  // ---- for the kinds ----

  const StepContext& context() const { return context_; }
  Kernels asked_for() const { return asked_for_; }
  // Set if a test wants random choices.
  const std::optional<RandomPlanner>& random() const { return random_; }
  const Value& value(int v) const { return program_.values()[v]; }
  bool is_bytes(int store) const { return store >= 0 && context_.stores[store].bytes; }
  int64_t features(int v) const { return features_[v]; }

  // Adds a step of one image, or of the whole batch for rows that no planes depend on.
  void add(std::unique_ptr<Step> step) { steps_->push_back(std::move(step)); }
  // Adds a step that may leave the halo of the store y to another step.
  void add_with_halo(std::unique_ptr<HaloedStep> step, int y);
  // Adds a convolution, whose kernel the plan chooses.
  void add_conv(std::unique_ptr<FloatConvStep> conv, int y);
  void add_conv(std::unique_ptr<Int8ConvStep> conv, int y);

 private:
  const Program& program_;
  const Records& records_;
  const StepContext context_;
  const std::vector<int64_t>& features_;
  const std::optional<RandomPlanner>& random_;
  Kernels asked_for_;
  MadeSteps& made_;
  Steps* steps_ = nullptr;  // target for the current record
};

}  // namespace secateur::engine
