#include "int8_rows.h"

#include <algorithm>

#include "engine/program/layers.h"

namespace secateur::engine {
namespace {

constexpr int64_t kReach = 65536;  // range of a 16-bit offset, in input quads

// At least this many images share the lanes. Fewer take one pass each.
constexpr int64_t kLaneImages = 4;
constexpr int64_t kTileRows = 4;  // 16 images in each

StepReport cast_report(const std::string& name, const char* kind, int64_t features) {
  StepReport r;
  r.name = name;
  r.kind = kind;
  r.kernel = "rows";
  r.tile = std::to_string(features);
  return r;
}

class Int8Linear : public Step {
 public:
  Int8Linear(const Op& op, const cpu::EngineKernels& kernels, const cpu::Int8Kernels& quads)
      : Step(op.name),
        x_(op.inputs[0]),
        y_(op.output),
        op_(op.as<Int8LinearAttributes>()),
        kernels_(kernels),
        quads_(quads) {
    const int64_t input_quads = whole_quads(channels());
    chunks_ = std::max<int64_t>((input_quads + kReach - 1) / kReach, 1);
    parts_ = equal_parts(*op_.bytes, std::clamp<int64_t>(neurons() / 16, 1, work_units()), 4);
    BlockShape shape;
    shape.needs_int16_safe_blocks = quads.needs_int16_safe_blocks;
    stream_ = block_stream(*op_.bytes, shape, parts_, {std::min(input_quads, kReach), chunks_, 1, {0}, 0});
    while (max_rows_ < kTileRows && quads.block_planes[0][max_rows_ + 1][1]) ++max_rows_;
    epilogue_ = op_.epilogue(0);
  }

  int64_t tasks() const override { return static_cast<int64_t>(parts_.size()) - 1; }
  int64_t scratch_floats(int64_t count) const override {
    const int64_t padded = whole_quads(neurons()) * 4;
    if (count < kLaneImages) return padded;
    return (whole_quads(channels()) + 2 * padded) * max_rows_ * kLanes;
  }

  void run(const Call& call, const Worker& worker, int64_t image, int64_t count, int64_t task) const override {
    if (count < kLaneImages) {
      for (int64_t n = image; n < image + count; ++n) run_vector(call, worker, n, task);
      return;
    }
    for (int64_t n = image; n < image + count;) {
      const int64_t rows = std::min<int64_t>((image + count - n + kLanes - 1) / kLanes, max_rows_);
      const int64_t images = std::min(image + count - n, rows * kLanes);
      run_lanes(call, worker, n, images, rows, task);
      n += images;
    }
  }

  StepReport report() const override {
    StepReport r;
    r.name = name();
    r.kind = "linear";
    r.shape = {neurons(), channels()};
    r.kernel = "int8";
    r.zeros = op_.bytes->zeros();
    r.why = "quantized";
    r.multiply_adds = static_cast<double>(stream_.weights.size()) / kLanes;
    return r;
  }

 private:
  int64_t channels() const { return op_.bytes->per_neuron(); }
  int64_t neurons() const { return op_.bytes->neurons(); }
  Range bounds(int64_t task) const { return {parts_[task], parts_[task + 1]}; }
  // Rows of chunk c that belong to this task.
  Range rows_of(int64_t c, int64_t task) const {
    return {stream_.row_at[c * tasks() + task], stream_.row_at[c * tasks() + task + 1]};
  }

  void run_vector(const Call& call, const Worker& worker, int64_t image, int64_t task) const {
    auto* sums = reinterpret_cast<int32_t*>(worker.scratch);
    for (int64_t c = 0; c < chunks_; ++c) {
      const Range r = rows_of(c, task);
      quads_.block_vector({stream_.rows.data() + r.begin, r.end - r.begin, stream_.offsets.data(),
                           stream_.weights.data(), bytes_of(call, x_, image, channels()),
                           c == 0 ? epilogue_.bias : nullptr, sums});
    }
    const Range k = bounds(task);
    if (epilogue_.real) {
      float* y = call.rows[y_] + image * neurons();
      for (int64_t i = k.begin; i < k.end; ++i) y[i] = static_cast<float>(sums[i]) * epilogue_.multiplier[i];
      activate(y, k);
      return;
    }
    uint8_t* y = bytes_of(call, y_, image, neurons());
    for (int64_t i = k.begin; i < (k.end == neurons() ? row_bytes(k.end) : k.end); ++i) {
      const uint8_t q = std::clamp(byte_of(static_cast<float>(sums[i]) * epilogue_.multiplier[i], epilogue_.zero_point),
                                   epilogue_.lo, epilogue_.hi);
      y[i] = epilogue_.theta && q < epilogue_.theta[i] ? static_cast<uint8_t>(epilogue_.zero_point) : q;
    }
  }

  // Applies the activation to float outputs, one vector at a time, with the kernel of engine.h.
  void activate(float* y, Range k) const {
    if (epilogue_.activation.act == cpu::Act::kNone) return;
    alignas(64) float v[kLanes];
    cpu::MapRow row{};
    row.a = row.y = v;
    row.count = 1;
    row.scale = 1;
    row.activation = epilogue_.activation;
    const int64_t width = epilogue_.activation.theta ? 1 : kLanes;  // theta differs between outputs
    for (int64_t i = k.begin; i < k.end; i += width) {
      const int64_t n = std::min(width, k.end - i);
      row.channel = i;
      std::fill(std::copy_n(y + i, n, v), v + kLanes, 0.0f);
      kernels_.map_row(row);
      std::copy_n(v, n, y + i);
    }
  }

  // Images in the lanes, 16 in a row of the tile: inputs [rows][quads][16], outputs [rows][quads or K][16] in scratch.
  void run_lanes(const Call& call, const Worker& worker, int64_t image, int64_t images, int64_t rows,
                 int64_t task) const {
    const int64_t in_quads = whole_quads(channels()), padded = whole_quads(neurons()) * 4;
    float* in = worker.scratch;
    float* out = in + in_quads * rows * kLanes;
    for (int64_t r = 0; r < rows; ++r) {
      const float* lanes[kLanes];  // a quad is as wide as a float; lanes without an image repeat the last
      for (int64_t l = 0; l < kLanes; ++l)
        lanes[l] = reinterpret_cast<const float*>(
            bytes_of(call, x_, image + std::min(r * kLanes + l, images - 1), channels()));
      kernels_.interleave(in + r * in_quads * kLanes, lanes, in_quads);
    }
    cpu::BlockPlanes args{};
    args.offsets = stream_.offsets.data();
    args.weights = stream_.weights.data();
    args.x = reinterpret_cast<const uint8_t*>(in);
    args.x_row = in_quads * kVectorBytes;
    args.epilogue = &epilogue_;
    args.out.sums = reinterpret_cast<int32_t*>(out + padded * rows * kLanes);
    args.out.y = reinterpret_cast<uint8_t*>(out);
    args.out.y_plane = kVectorBytes;
    const int64_t out_planes = epilogue_.real ? padded : padded / 4;
    args.out.y_row = out_planes * kVectorBytes;
    for (int64_t c = 0; c < chunks_; ++c) {
      const Range r = rows_of(c, task);
      args.out.first = c == 0;
      args.out.last = c + 1 == chunks_;
      args.rows = stream_.rows.data() + r.begin;
      args.row_count = r.end - r.begin;
      quads_.block_planes[0][rows][1](args);
    }
    const Range k = bounds(task);
    for (int64_t n = 0; n < images; ++n) {
      const float* from = out + n / kLanes * out_planes * kLanes + n % kLanes;
      float* y = epilogue_.real ? call.rows[y_] + (image + n) * neurons()
                                : reinterpret_cast<float*>(bytes_of(call, y_, image + n, neurons()));
      const Range planes = epilogue_.real ? k : Range{k.begin / 4, whole_quads(k.end)};
      for (int64_t i = planes.begin; i < planes.end; ++i) y[i] = from[i * kLanes];
    }
  }

  int x_, y_;  // values
  const Int8LinearAttributes& op_;
  const cpu::EngineKernels& kernels_;
  const cpu::Int8Kernels& quads_;
  int64_t chunks_ = 1, max_rows_ = 1;
  std::vector<int64_t> parts_;
  BlockStream stream_;
  cpu::Int8Epilogue epilogue_;
};

class RowsQuantize : public Step {
 public:
  RowsQuantize(const Op& op, int64_t features)
      : Step(op.name),
        x_(op.inputs[0]),
        y_(op.output),
        to_(op.quant.value()),
        theta_(op.as<QuantizeAttributes>().theta),
        features_(features) {}
  void run(const Call& call, const Worker&, int64_t image, int64_t count, int64_t) const override {
    for (int64_t n = image; n < image + count; ++n) {
      const float* x = call.rows[x_] + n * features_;
      uint8_t* y = bytes_of(call, y_, n, features_);
      const auto inverse = static_cast<float>(1.0 / to_.scale);
      std::fill(y + features_, y + row_bytes(features_), uint8_t{0});
      for (int64_t i = 0; i < features_; ++i) {
        y[i] = byte_of(x[i] * inverse, to_.zero_point);
        if (!theta_.empty() && y[i] < theta_[i]) y[i] = static_cast<uint8_t>(to_.zero_point);
      }
    }
  }
  StepReport report() const override { return cast_report(name(), "quantize", features_); }

 private:
  int x_, y_;  // values
  Quant to_;
  const std::vector<uint8_t>& theta_;
  int64_t features_;
};

class RowsDequantize : public Step {
 public:
  RowsDequantize(const Op& op, const Quant& from, int64_t features)
      : Step(op.name), x_(op.inputs[0]), y_(op.output), from_(from), features_(features) {}
  void run(const Call& call, const Worker&, int64_t image, int64_t count, int64_t) const override {
    for (int64_t n = image; n < image + count; ++n) {
      const uint8_t* x = bytes_of(call, x_, n, features_);
      float* y = call.rows[y_] + n * features_;
      for (int64_t i = 0; i < features_; ++i) y[i] = static_cast<float>(int32_t{x[i]} - from_.zero_point) * from_.scale;
    }
  }
  StepReport report() const override { return cast_report(name(), "dequantize", features_); }

 private:
  int x_, y_;  // values
  Quant from_;
  int64_t features_;
};

}  // namespace

std::unique_ptr<Step> make_block_linear(const Op& op, const cpu::EngineKernels& kernels,
                                        const cpu::Int8Kernels& quads) {
  return std::make_unique<Int8Linear>(op, kernels, quads);
}
std::unique_ptr<Step> make_rows_quantize(const Op& op, int64_t features) {
  return std::make_unique<RowsQuantize>(op, features);
}
std::unique_ptr<Step> make_rows_dequantize(const Op& op, const Quant& x, int64_t features) {
  return std::make_unique<RowsDequantize>(op, x, features);
}

}  // namespace secateur::engine
