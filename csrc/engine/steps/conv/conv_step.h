// A convolution between two stores: which kernel, which tile, which chunk of input channels; packed accordingly.
#pragma once

#include "conv_tiles.h"
#include "engine/program/program.h"
#include "engine/steps/step.h"

namespace secateur::engine {

struct ConvChoice {
  bool dense = false;
  int rows = 1, columns = 1;  // of a tile, vectors
  int64_t chunk = 0;          // input channels (of a group) whose planes a tile reads at a time
  bool by_tile = false;       // how threads share the work: by tiles, or by output channels
};

class ConvStep : public Step {
 public:
  // The stores outlive the step; residual may be null.
  ConvStep(const Op& op, const std::vector<Store>& stores, int x, int y, int residual,
           const cpu::EngineKernels& kernels);

  int64_t tasks() const override;
  void run(const Call&, const Worker&, int64_t image, int64_t count, int64_t task) const override;
  void run_all(const Call&, const Worker&, int64_t image, int64_t count) const override;
  int64_t scratch_floats(int64_t count) const override;
  StepReport report() const override;

  // Whether the frame is left for a step of its own, since no task has a whole channel.
  bool leaves_frame() const { return choice_.by_tile; }

  // Choices worth measuring, the likeliest first; and all that there are.
  std::vector<ConvChoice> candidates(bool dense) const;
  std::vector<ConvChoice> all_candidates(bool dense) const;
  bool sparse_fits() const;  // 16 bits hold the offsets of one channel
  bool dense_is_worth_trying() const;
  bool sparse_is_worth_trying() const;
  void pack(const ConvChoice& choice);
  void set_measured(double sparse_ms, double dense_ms, std::string why);
  double predict(const ConvChoice& choice) const;  // cycles, roughly
  int64_t largest_scratch() const;                 // floats, of any candidate

 private:
  int64_t group_channels() const { return op_.weights->per_neuron() / (op_.window.kernel[0] * op_.window.kernel[1]); }
  int64_t tap_offset(int64_t tap) const;  // vectors
  Range reach() const;                    // the lowest offset and the highest, 0 among them
  void pack_sparse();
  void pack_dense();
  cpu::Ahead ahead(const Worker&, const Tile&, int64_t chunk, int64_t rows) const;
  void run_range(const Worker&, Range tiles, Range parts) const;

  const Op& op_;
  const std::vector<Store>& stores_;
  int x_, y_, residual_;
  const cpu::EngineKernels& kernels_;
  bool line_;               // the block is one line of vectors: 1x1 kernels between stores without frames
  int64_t rows_, columns_;  // of output vectors

  ConvChoice choice_;
  std::vector<Tile> tiles_;
  std::vector<int64_t> parts_;  // output channels: part i is [parts_[i], parts_[i + 1])
  int64_t chunks_ = 1;
  // sparse: rows of chunk c, part p: [row_at_[c * parts + p], row_at_[c * parts + p + 1])
  std::vector<cpu::SparseRow> sparse_rows_;
  std::vector<int64_t> row_at_;
  std::vector<uint16_t> offsets_;
  std::vector<float> weights_;
  // dense
  std::vector<int32_t> taps_;
  int64_t block_floats_ = 0;

  double sparse_ms_ = 0, dense_ms_ = 0;
  std::string why_ = "cost model";
};

}  // namespace secateur::engine
