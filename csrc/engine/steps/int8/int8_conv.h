// An int8 convolution between two stores of quads (cpu/int8.h): sparse weights as 1x4 blocks; dense and depthwise
// weights as 4x4 blocks if these measure faster.
#pragma once

#include "block_weights.h"
#include "engine/steps/conv/tiled_conv.h"

namespace secateur::engine {

class Int8ConvStep : public TiledConv {
 public:
  Int8ConvStep(const std::string& name, const Int8ConvAttributes& conv, const std::vector<Store>& stores, int x, int y,
               int residual, const cpu::EngineKernels& kernels, const cpu::Int8Kernels& quads);

  int64_t scratch_floats(int64_t count) const override;
  StepReport report() const override;

  bool can_serve(bool blocks4x4) const override { return !blocks4x4 || blocks4x4_ > 0; }
  // 4x4 blocks also multiply zero 1x4 blocks beside nonzero ones.
  bool is_worth_trying(bool blocks4x4) const override {
    return !blocks4x4 || (blocks4x4_ > 0 && 4 * blocks4x4_ < 2 * blocks_);
  }
  ConvChoice likeliest() const override;
  int64_t largest_scratch() const override;

 private:
  void add_cycles(const ConvChoice& choice, const TileCost& tile, double& cycles) const override;
  bool has_kernel(bool blocks4x4, int rows, int columns) const override;
  std::vector<int64_t> chunk_sizes() const override;
  void pack_weights() override;
  void run_range(const Worker&, Range tiles, Range parts) const override;

  const Int8ConvAttributes& op_;
  const cpu::Int8Kernels& quads_;
  BlockShape shape_;
  int64_t whole_blocks_, blocks_;  // nonzero 1x4 blocks; the same as written, some split in two
  int64_t blocks4x4_;              // 0: there are none
  BlockStream stream_;             // one of them is empty
  Block4x4Stream stream4x4_;
  cpu::Int8Epilogue epilogue_;
};

}  // namespace secateur::engine
