// A convolution of bytes between two stores of quads (cpu/quads.h): sparse weights as blocks; dense ones, and depthwise
// ones, as squares, where that measures faster.
#pragma once

#include "block_weights.h"
#include "engine/steps/conv/tiled_conv.h"

namespace secateur::engine {

class BlockConvStep : public TiledConv {
 public:
  BlockConvStep(const std::string& name, const Int8ConvAttributes& conv, const std::vector<Store>& stores, int x, int y,
                int residual, const cpu::EngineKernels& kernels, const cpu::QuadKernels& quads);

  int64_t scratch_floats(int64_t count) const override;
  StepReport report() const override;

  bool can_serve(bool squares) const override { return !squares || squares_ > 0; }
  // Squares multiply the zeros of blocks that their neighbours fill, too.
  bool is_worth_trying(bool squares) const override { return !squares || (squares_ > 0 && 4 * squares_ < 2 * blocks_); }
  ConvChoice likeliest() const override;
  int64_t largest_scratch() const override;

 private:
  void add_cycles(const ConvChoice& choice, const TileCost& tile, double& cycles) const override;
  bool has_kernel(bool squares, int rows, int columns) const override;
  std::vector<int64_t> chunk_sizes() const override;
  void pack_weights() override;
  void run_range(const Worker&, Range tiles, Range parts) const override;

  const Int8ConvAttributes& op_;
  const cpu::QuadKernels& quads_;
  BlockShape shape_;
  int64_t whole_blocks_, blocks_;  // that are not zero, and as they are written: some as two
  int64_t squares_;                // 0: there are none
  BlockStream stream_;             // one of them is empty
  SquareStream squares_of_;
  cpu::QuadEnd end_;
};

}  // namespace secateur::engine
