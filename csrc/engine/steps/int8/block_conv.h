// A convolution of bytes between two stores of quads (cpu/quads.h): tiles, chunks and parts as conv_step.h has them.
// Sparse weights as blocks; dense ones, and depthwise ones, as squares, where that measures faster.
#pragma once

#include "block_weights.h"
#include "engine/program/program.h"
#include "engine/steps/conv/conv_tiles.h"
#include "engine/steps/step.h"

namespace secateur::engine {

struct BlockChoice {
  bool squares = false;       // four output channels at a time
  int rows = 1, columns = 1;  // of a tile, vectors
  int64_t chunk = 0;          // input quads (of a group) that a tile reads at a time
};

class BlockConvStep : public FramedStep {
 public:
  // The stores outlive the step; residual may be null.
  BlockConvStep(const Op& op, const std::vector<Store>& stores, int x, int y, int residual,
                const cpu::EngineKernels& kernels, const cpu::QuadKernels& quads);

  int64_t tasks() const override;
  void run(const Call&, const Worker&, int64_t image, int64_t count, int64_t task) const override;
  void run_all(const Call&, const Worker&, int64_t image, int64_t count) const override;
  int64_t scratch_floats(int64_t count) const override;
  StepReport report() const override;
  bool leaves_frame() const override { return by_tile_; }

  const Op& op() const { return op_; }
  // Choices worth measuring, the likeliest first; and all that there are.
  std::vector<BlockChoice> candidates(bool squares) const;
  std::vector<BlockChoice> all_candidates(bool squares) const;
  BlockChoice likeliest() const;
  bool has_squares() const { return squares_ > 0; }
  bool squares_are_worth_trying() const;
  void pack(const BlockChoice& choice);
  void set_measured(double blocks_ms, double squares_ms);
  void set_why(std::string why) { why_ = std::move(why); }
  int64_t largest_scratch() const;  // floats, of any candidate

 private:
  int64_t tap_offset(int64_t tap) const;  // vectors
  double predict(const BlockChoice& choice) const;
  void run_range(const Worker&, Range tiles, Range parts) const;

  const Op& op_;
  const std::vector<Store>& stores_;
  int x_, y_, residual_;
  const cpu::EngineKernels& kernels_;
  const cpu::QuadKernels& quads_;
  BlockShape shape_;
  int64_t input_quads_;
  int64_t whole_blocks_, blocks_;  // that are not zero, and as they are written: some as two
  int64_t squares_;                // 0: there are none
  bool line_;                      // the block is one line of vectors: 1x1 kernels between stores without frames
  int64_t rows_, columns_;         // of output vectors

  BlockChoice choice_;
  bool by_tile_ = false;  // how threads share the work: by tiles, or by output channels
  std::vector<Tile> tiles_;
  std::vector<int64_t> parts_;
  int64_t chunks_ = 1;
  BlockStream stream_;  // one of them is empty
  SquareStream squares_of_;
  cpu::QuadEnd end_;
  double blocks_ms_ = 0, squares_ms_ = 0;
  std::string why_;
};

}  // namespace secateur::engine
