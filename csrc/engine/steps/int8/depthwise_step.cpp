#include "depthwise_step.h"

#include <algorithm>

#include "block_weights.h"
#include "engine/steps/channel_step.h"

namespace secateur::engine {
namespace {

// Omits taps at which all four channels of a quad have zero weights.
class Int8Depthwise : public ChannelStep {
 public:
  Int8Depthwise(const StepContext& context, std::string name, const Int8ConvAttributes& op, int x, int y,
                std::string why)
      : ChannelStep(context, std::move(name), "conv2d", y),
        op_(op),
        x_(x),
        y_(y),
        why_(std::move(why)),
        epilogue_(op.epilogue(0)) {
    const std::vector<int32_t> floats = window_taps(op.window, store(x).layout);
    const auto taps = static_cast<int64_t>(floats.size());
    std::vector<int16_t> dense(static_cast<size_t>(taps * 4));  // of a quad: [tap][channel]
    for (int64_t q = 0; q < store(y).planes(); ++q) {
      std::fill(dense.begin(), dense.end(), int16_t{0});
      for (int64_t j = 0; j < 4 && 4 * q + j < op.bytes->neurons(); ++j)
        op.bytes->for_each(4 * q + j, [&](int64_t tap, int8_t w) { dense[tap * 4 + j] = w; });
      std::vector<int64_t> kept;
      for (int64_t t = 0; t < taps; ++t)
        if (std::any_of(&dense[t * 4], &dense[t * 4] + 4, [](int16_t w) { return w != 0; })) kept.push_back(t);
      for (size_t i = 0; i < kept.size(); i += 2) {
        const bool lone = i + 1 == kept.size();
        const int64_t a = kept[i], b = lone ? a : kept[i + 1];
        taps_.push_back(floats[a] * 4), taps_.push_back(floats[b] * 4);
        for (int64_t j = 0; j < 4; ++j)
          weights_.push_back(dense[a * 4 + j]), weights_.push_back(lone ? int16_t{0} : dense[b * 4 + j]);
      }
      begin_.push_back(static_cast<int64_t>(taps_.size()) / 2);
    }
  }
  int64_t tasks() const override { return std::clamp<int64_t>(channels() / 2, 1, work_units()); }  // more work a plane
  StepReport report() const override {
    const Window& w = op_.window;
    StepReport r = ChannelStep::report();
    r.shape = {op_.bytes->neurons(), 1, w.kernel[0], w.kernel[1]};
    r.kernel = "int8 depthwise";
    r.zeros = op_.bytes->zeros();
    r.why = "quantized: a channel at a time";
    if (!why_.empty()) r.why += "; " + why_;
    return r;
  }

 protected:
  int64_t channels() const override { return store(y_).planes(); }
  void run_channels(const Call&, const Worker& worker, int64_t, int64_t c0, int64_t c1) const override {
    const Store &x = store(x_), &y = store(y_);
    const CellGrid& b = y.layout.cells;
    cpu::Int8DepthwiseRow row{};
    row.step = op_.window.stride[1] * kVectorBytes;
    row.count = b.columns;
    row.epilogue = &epilogue_;
    for (int64_t c = c0; c < c1; ++c) {
      row.channel = 4 * c;
      row.taps = taps_.data() + 2 * begin_[c];
      row.weights = weights_.data() + 8 * begin_[c];
      row.paired = begin_[c + 1] - begin_[c];
      for (int64_t r = 0; r < b.rows; ++r) {
        row.x = x.row_bytes(worker.arena, c, r * op_.window.stride[0]);
        row.y = y.row_bytes(worker.arena, c, r);
        row.valid = y.valid_row(r);
        quads().depthwise_row(row);
      }
    }
    y.fill_halos(kernels(), worker.arena, c0, c1);
  }

 private:
  const Int8ConvAttributes& op_;
  int x_, y_;
  std::string why_;
  cpu::Int8Epilogue epilogue_;
  std::vector<int64_t> begin_{0};  // by quad: its first pair of taps
  std::vector<int32_t> taps_;      // [pair of taps][2], bytes
  std::vector<int16_t> weights_;   // [pair of taps][channel of the quad][2]
};

}  // namespace

bool fits_depthwise(const Int8ConvAttributes& op, const cpu::Int8Kernels& quads) {
  return quads.depthwise_row && op.quant && !op.terms.wide && op.groups == op.bytes->neurons() &&
         op.bytes->per_neuron() == op.window.kernel[0] * op.window.kernel[1];
}

std::unique_ptr<Step> make_int8_depthwise(const StepContext& context, std::string name, const Int8ConvAttributes& conv,
                                          int x, int y, std::string why) {
  return std::make_unique<Int8Depthwise>(context, std::move(name), conv, x, y, std::move(why));
}

}  // namespace secateur::engine
