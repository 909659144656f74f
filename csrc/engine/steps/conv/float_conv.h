// A convolution that skips the zeros of its input: lists of nonzeros, then lists x dense weights.
//
// FloatConvStep reads the nonzero form of x in the arena. The convolution before it writes that form from its sums if
// it works with lists itself; otherwise NonzeroListStep does. An image with too many nonzeros falls back to the
// convolution on planes, so no input makes a layer much slower.
#pragma once

#include "conv_step.h"

namespace secateur::engine {

// How a convolution uses lists of its input's nonzeros.
struct ActiveChoice {
  int64_t group = 0;      // input channels per list; 0: planes
  int sums = 0;           // vectors of output channels in registers
  double most_dense = 0;  // share of nonzeros up to which lists pay off
  bool operator==(const ActiveChoice&) const = default;
};

// Layout of the nonzero form of a value: floats from the start of its place in the arena.
struct ActiveForm {
  int64_t groups = 0, group = 0, height = 0, width = 0;
  int64_t list = 0;   // entries of a list
  int64_t start = 0;  // uint16 from a list's starts to the next
  int64_t lists() const { return groups * height; }
  int64_t index_at() const { return lists() * list; }
  int64_t start_at() const { return index_at() + lists() * list / 2; }
  int64_t count_at() const { return start_at() + lists() * start / 2; }
  int64_t floats() const { return count_at() + (lists() + 1 + 15) / 16 * 16; }  // the last count: see ActiveLists
};
// Pointers into that layout: list i has values and index from i * list on, start from i * start on.
struct ActiveLists {
  float* values;
  uint16_t* index;
  uint16_t* start;
  uint32_t* count;  // [lists + 1]; the last one: whether the feeding step has written the lists
};
ActiveForm active_form(int64_t channels, int64_t height, int64_t width, int64_t group);

class FloatConvStep : public HaloedStep {
 public:
  FloatConvStep(const std::string& name, const ConvAttributes& conv, const std::vector<Store>& stores, int x, int y,
                int residual, const cpu::EngineKernels& kernels);

  ConvStep& planes() { return planes_; }
  const ConvStep& planes() const { return planes_; }
  const ConvAttributes& op() const { return op_; }

  // Choices worth measuring; none if lists do not support this layer.
  std::vector<ActiveChoice> candidates() const;
  std::vector<ActiveChoice> all_candidates() const;  // all that lists support
  bool fits(const ActiveChoice&) const;
  void pack(const ActiveChoice& choice);
  const ActiveChoice& choice() const { return choice_; }
  bool active() const { return choice_.group > 0; }
  int64_t form_floats() const { return active() ? form_.floats() : 0; }
  void place(int64_t offset) { offset_ = offset; }
  // Whether this step can write the lists of `reader` from its finished pixels.
  bool can_feed(const FloatConvStep& reader) const;
  void feed(FloatConvStep& reader);
  void unlink() { readers_.clear(), fed_ = false; }
  bool fed() const { return fed_; }

  void set_measured(double zeros, double active_ms, std::string why);
  int64_t largest_scratch() const;  // floats, of any candidate
  int64_t largest_form() const;
  double input_zeros(float* arena) const;  // of the planes in the arena, by counting

  // Makes the lists, cut into tasks.
  int64_t list_tasks() const;
  void list(const Worker& worker, int64_t task) const;
  int64_t list_scratch() const;

  int64_t tasks() const override;
  void run(const Call&, const Worker&, int64_t image, int64_t count, int64_t task) const override;
  void run_all(const Call&, const Worker&, int64_t image, int64_t count) const override;  // includes lists and halo
  int64_t scratch_floats(int64_t count) const override;
  StepReport report() const override;
  bool leaves_halo() const override { return active() || planes_.leaves_halo(); }
  bool pays(float* arena) const;  // whether the lists have few enough nonzeros

 private:
  ActiveLists lists(float* arena) const;
  int64_t width() const { return choice_.sums * kLanes; }  // output channels of a block
  int64_t units() const;                                   // a block of output channels in one vector row
  int64_t active_tasks() const { return std::min(units(), 4 * work_units()); }
  void run_units(const Worker& worker, Range units) const;
  void run_unit(const Worker& worker, int64_t block, int64_t row) const;
  void list_row(const Worker& worker, int64_t group, int64_t row, float* pixels, int64_t pixel, bool from_planes) const;
  void tell_readers(float* arena, bool written) const;

  const ConvAttributes& op_;
  const std::vector<Store>& stores_;
  int x_, y_, residual_;
  const cpu::EngineKernels& kernels_;
  ConvStep planes_;

  ActiveChoice choice_;
  ActiveForm form_;
  int64_t offset_ = 0;
  std::vector<const FloatConvStep*> readers_;
  bool fed_ = false;
  std::vector<float> weights_;  // [block of output channels][group][kernel row][kernel column][in group][sums * 16]
  double zeros_ = -1, active_ms_ = 0;
  std::string why_;
};

// Makes the nonzero form of a convolution's input if the layer before does not write it.
class NonzeroListStep : public Step {
 public:
  explicit NonzeroListStep(const FloatConvStep& conv) : Step(conv.name() + " (nonzeros)"), conv_(conv) {}
  int64_t tasks() const override { return conv_.active() && !conv_.fed() ? conv_.list_tasks() : 0; }
  void run(const Call&, const Worker& worker, int64_t, int64_t, int64_t task) const override {
    conv_.list(worker, task);
  }
  void run_all(const Call&, const Worker&, int64_t, int64_t) const override {}
  int64_t scratch_floats(int64_t) const override { return conv_.list_scratch(); }
  StepReport report() const override;

 private:
  const FloatConvStep& conv_;
};

}  // namespace secateur::engine
