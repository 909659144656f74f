// A float convolution: sparse weights as streams of nonzeros, dense ones in blocks of output channels.
#pragma once

#include "engine/steps/stream.h"
#include "tiled_conv.h"

namespace secateur::engine {

// One weight per entry; see pack_stream.
struct Nonzeros {
  using Row = cpu::SparseRow;
  using Weight = float;
  static constexpr int kWeights = 1;
  static constexpr bool kKeepsEmptyRows = false;

  template <class F>
  void for_each(int64_t row, F&& f) const {
    weights.for_each(row, [&](int64_t i, float w) { f(i / taps, i % taps, &w); });
  }
  int64_t first_plane(int64_t row) const { return row / (weights.neurons() / groups) * (weights.per_neuron() / taps); }
  Row row(int64_t row, int64_t) const { return {static_cast<int32_t>(row), static_cast<int32_t>(row), 0, 0, 0}; }
  static void add(Row&, const float*) {}

  const Weights& weights;
  int64_t taps, groups;
};

class ConvStep : public TiledConv {
 public:
  ConvStep(const std::string& name, const ConvAttributes& conv, const std::vector<Store>& stores, int x, int y,
           int residual, const cpu::EngineKernels& kernels);

  int64_t scratch_floats(int64_t count) const override;
  StepReport report() const override;
  bool can_serve(bool dense) const override { return dense || offsets_fit(); }
  bool is_worth_trying(bool dense) const override;
  ConvChoice likeliest() const override { return candidates(!is_worth_trying(false)).front(); }
  int64_t largest_scratch() const override;

 private:
  void add_cycles(const ConvChoice& choice, const TileCost& tile, double& cycles) const override;
  bool has_kernel(bool dense, int rows, int columns) const override;
  std::vector<int64_t> chunk_sizes() const override;
  void pack_weights() override;
  void pack_dense();
  cpu::Ahead ahead(const Worker&, const Tile&, int64_t chunk, int64_t rows) const;
  void run_range(const Worker&, Range tiles, Range parts) const override;
  const char* why() const;

  const ConvAttributes& op_;
  Stream<cpu::SparseRow, float> stream_;  // sparse
  // dense
  std::vector<float> weights_;
  std::vector<int32_t> taps_;
  int64_t block_floats_ = 0;
};

}  // namespace secateur::engine
