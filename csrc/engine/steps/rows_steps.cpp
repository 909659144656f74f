#include "rows_steps.h"

#include <algorithm>
#include <numeric>

#include "stream.h"

namespace secateur::engine {
namespace {

constexpr int64_t kReach = 65536;  // range of a 16-bit offset, in inputs

// At least this many images share the lanes. Fewer take one pass each.
constexpr int64_t kLaneImages = 4;
constexpr int64_t kTileImages = 4 * kLanes;  // in one pass
constexpr int64_t kMostWidth = cpu::kActiveVectorSums * kLanes;
constexpr double kMostActive = 0.7;  // share of nonzeros up to which sparse weights are faster by input

// Weights of output channels over the inputs; see pack_stream. Tasks find a channel's row by its number.
struct RowWeights {
  using Row = cpu::SparseRow;
  using Weight = float;
  static constexpr int kWeights = 1;
  static constexpr bool kKeepsEmptyRows = true;

  template <class F>
  void for_each(int64_t row, F&& f) const {
    weights.for_each(row, [&](int64_t i, float w) { f(i, 0, &w); });
  }
  int64_t first_plane(int64_t) const { return 0; }
  Row row(int64_t row, int64_t) const { return {static_cast<int32_t>(row), static_cast<int32_t>(row), 0, 0, 0}; }
  static void add(Row&, const float*) {}

  const Weights& weights;
};

class Linear : public Step {
 public:
  Linear(const Op& op, const cpu::EngineKernels& kernels)
      : Step(op.name),
        x_(op.inputs[0]),
        y_(op.output),
        op_(op.as<LinearAttributes>()),
        kernels_(kernels),
        dense_(op_.weights->zeros() < 0.6) {
    if (dense_) pack_dense();
    else pack_sparse();
    while (max_rows_ < kTileImages / kLanes && (dense_ ? kernels.dense_planes[0][max_rows_ + 1][1] != nullptr
                                                       : kernels.sparse_planes[0][max_rows_ + 1][1] != nullptr))
      ++max_rows_;
  }

  int64_t tasks() const override { return std::clamp<int64_t>(neurons() / 16, 1, work_units()); }
  int64_t scratch_floats(int64_t count) const override {
    return count < kLaneImages ? 2 * (channels() + kLanes) + neurons() + kMostWidth
                               : (channels() + 2 * neurons()) * kTileImages;
  }

  void run(const Call& call, const Worker& worker, int64_t image, int64_t count, int64_t task) const override {
    const float* x = call.rows[x_] + image * channels();
    float* y = call.rows[y_] + image * neurons();
    const Range k{bounds_[task], bounds_[task + 1]};
    if (count < kLaneImages) {
      for (int64_t n = 0; n < count; ++n) run_vector(worker.scratch, x + n * channels(), y + n * neurons(), k, task);
      return;
    }
    for (int64_t n = 0; n < count;) {
      const int64_t rows = std::min<int64_t>((count - n + kLanes - 1) / kLanes, max_rows_);
      const int64_t images = std::min(count - n, rows * kLanes);
      run_lanes(worker.scratch, x + n * channels(), y + n * neurons(), images, rows, k);
      n += images;
    }
  }

  StepReport report() const override {
    StepReport r;
    r.name = name();
    r.kind = "linear";
    r.shape = {neurons(), channels()};
    r.kernel = dense_ ? "dense" : "sparse";
    r.zeros = op_.weights->zeros();
    r.why = dense_ ? "few zeros" : "zeros";
    r.multiply_adds = static_cast<double>(dense_ ? neurons() * channels() : op_.weights->nonzeros()) / kLanes;
    return r;
  }

 private:
  int64_t channels() const { return op_.weights->per_neuron(); }
  int64_t neurons() const { return op_.weights->neurons(); }
  const float* bias() const { return op_.bias.empty() ? nullptr : op_.bias.data(); }

  void set_bounds(int64_t unit) {
    const int64_t n = tasks(), units = (neurons() + unit - 1) / unit;
    for (int64_t t = 0; t <= n; ++t) bounds_.push_back(std::min(units * t / n * unit, neurons()));
  }

  // Packs by input, for the nonzeros of one input vector: one packing for each task.
  void pack_columns() {
    if (neurons() > kReach) return;
    for (size_t t = 0; t + 1 < bounds_.size(); ++t) {
      Columns& c = columns_.emplace_back();
      c.start.assign(static_cast<size_t>(channels() + 1), 0);
      for (int64_t k = bounds_[t]; k < bounds_[t + 1]; ++k)
        op_.weights->for_each(k, [&](int64_t i, float) { ++c.start[i + 1]; });
      for (int64_t i = 0; i < channels(); ++i) c.start[i + 1] += c.start[i];
      c.rows.resize(c.start.back());
      c.weights.resize(c.start.back());
      std::vector<uint32_t> at(c.start.begin(), c.start.end() - 1);
      for (int64_t k = bounds_[t]; k < bounds_[t + 1]; ++k)
        op_.weights->for_each(k, [&](int64_t i, float w) {
          c.rows[at[i]] = static_cast<uint16_t>(k - bounds_[t]);
          c.weights[at[i]++] = w;
        });
    }
  }

  void pack_sparse() {
    chunks_ = std::max<int64_t>((channels() + kReach - 1) / kReach, 1);
    set_bounds(1);
    RowWeights weights{*op_.weights};
    stream_ = pack_stream(weights, {0, neurons()}, {kReach, chunks_, 1, {0}, 0});
    pack_columns();
  }

  void pack_dense() {
    constexpr int64_t kBlock = cpu::kDenseBlock;
    while (sums_ < cpu::kActiveVectorSums && neurons() >= 4 * work_units() * sums_ * kLanes) sums_ *= 2;
    const int64_t width = sums_ * kLanes;
    set_bounds(width);
    by_input_.assign(static_cast<size_t>((neurons() + width - 1) / width * width * channels()), 0);
    weights_.assign(static_cast<size_t>((neurons() + kBlock - 1) / kBlock * kBlock * channels()), 0);
    for (int64_t k = 0; k < neurons(); ++k)
      op_.weights->for_each(k, [&](int64_t i, float w) {
        by_input_[(k / width * channels() + i) * width + k % width] = w;
        weights_[(k / kBlock * channels() + i) * kBlock + k % kBlock] = w;
      });
  }

  // One input vector. Dense weights are stored by input, so skipping zeros of the input costs nothing when there are
  // none. Sparse weights are stored by output, and by input for vectors with enough zeros.
  void run_vector(float* scratch, const float* x, float* y, Range k, int64_t task) const {
    float* values = scratch;
    auto* index = reinterpret_cast<int32_t*>(scratch + channels() + kLanes);
    float* sums = scratch + 2 * (channels() + kLanes);
    const int64_t count = dense_ || !columns_.empty() ? kernels_.active.compress(x, channels(), values, index) : 0;
    if (dense_) {
      const int64_t width = sums_ * kLanes;
      for (int64_t first = k.begin; first < k.end; first += width)
        kernels_.active.vector[sums_](
            {values, index, count, by_input_.data() + first * channels(), sums + first - k.begin});
    } else if (!columns_.empty() && static_cast<double>(count) <= kMostActive * static_cast<double>(channels())) {
      const Columns& c = columns_[task];
      std::fill_n(sums, k.end - k.begin, 0.0f);
      kernels_.active.columns({values, index, count, c.start.data(), c.rows.data(), c.weights.data(), sums});
    } else {
      for (int64_t c = 0; c < chunks_; ++c)
        kernels_.sparse_vector({stream_.rows.data() + c * neurons() + k.begin, k.end - k.begin, stream_.offsets.data(),
                                stream_.weights.data(), x, bias(), y, op_.activation.view(), c == 0, c + 1 == chunks_});
      return;
    }
    const cpu::Activation activation = op_.activation.view();
    kernels_.active.finish(sums, bias() ? bias() + k.begin : nullptr,
                           activation.theta ? activation.theta + k.begin : nullptr, activation, y + k.begin,
                           k.end - k.begin);
  }

  // Images in the lanes, 16 in a row of the tile: inputs [rows][C][16], outputs [rows][K][16] in scratch.
  void run_lanes(float* scratch, const float* x, float* y, int64_t images, int64_t rows, Range k) const {
    float* in = scratch;
    float* out = in + channels() * kTileImages;
    const int64_t in_row = channels() * kLanes, out_row = neurons() * kLanes;
    for (int64_t n = 0; n < rows * kLanes; ++n) {
      float* to = in + n / kLanes * in_row + n % kLanes;
      for (int64_t c = 0; c < channels(); ++c) to[c * kLanes] = n < images ? x[n * channels() + c] : 0.0f;
    }
    cpu::TileOut o{};
    o.scratch = out + neurons() * kTileImages;
    o.y = out;
    o.y_row = out_row;
    o.y_plane = kLanes;
    o.bias = bias();
    o.activation = op_.activation.view();
    if (dense_) {
      o.first = o.last = true;
      const int32_t tap = 0;
      cpu::DensePlanes args{};
      args.weights = weights_.data() + k.begin * channels();
      args.block_stride = channels() * cpu::kDenseBlock;
      args.k_begin = k.begin;
      args.k_end = k.end;
      args.channels = channels();
      args.taps = &tap;
      args.tap_count = 1;
      args.x = in;
      args.x_row = in_row;
      args.x_plane = kLanes;
      args.out = o;
      kernels_.dense_planes[0][rows][1](args);
    } else {
      for (int64_t c = 0; c < chunks_; ++c) {
        o.first = c == 0;
        o.last = c + 1 == chunks_;
        kernels_.sparse_planes[0][rows][1]({stream_.rows.data() + c * neurons() + k.begin, k.end - k.begin,
                                            stream_.offsets.data(), stream_.weights.data(), in, in_row, o});
      }
    }
    for (int64_t i = k.begin; i < k.end; ++i)
      for (int64_t n = 0; n < images; ++n) y[n * neurons() + i] = out[n / kLanes * out_row + i * kLanes + n % kLanes];
  }

  int x_, y_;  // values
  const LinearAttributes& op_;
  const cpu::EngineKernels& kernels_;
  bool dense_;
  int64_t max_rows_ = 1;
  int64_t chunks_ = 1;
  std::vector<int64_t> bounds_;
  Stream<cpu::SparseRow, float> stream_;  // sparse
  std::vector<float> weights_;            // dense, as kernels for images in the lanes read them
  int sums_ = 1;
  std::vector<float> by_input_;  // dense: [block of output channels][inputs][sums * 16]
  struct Columns {
    std::vector<uint32_t> start;
    std::vector<uint16_t> rows;
    std::vector<float> weights;
  };
  std::vector<Columns> columns_;  // sparse, by task
};

class RowsMap : public Step {
 public:
  RowsMap(const Op& op, int64_t features, const cpu::EngineKernels& kernels)
      : Step(op.name), op_(op), map_(op.as<MapAttributes>()), features_(features), kernels_(kernels) {}
  void run(const Call& call, const Worker&, int64_t image, int64_t count, int64_t) const override {
    // If scale, shift or theta differ between features, each feature is a channel and the kernel sees vectors of one
    // float. Otherwise activations and joins run over whole rows.
    const bool per_feature = !map_.scale.empty() || !map_.shift.empty() || !map_.activation.theta.empty();
    const float* a = call.rows[op_.inputs[0]] + image * features_;
    const float* b = op_.inputs.size() > 1 ? call.rows[op_.inputs[1]] + image * features_ : nullptr;
    float* y = call.rows[op_.output] + image * features_;
    cpu::MapRow row{};
    row.count = 1;
    row.join = map_.join;
    row.activation = map_.activation.view();
    row.scale = 1;
    alignas(64) float va[kLanes], vb[kLanes], vy[kLanes];
    row.a = va;
    row.b = b ? vb : nullptr;
    row.y = vy;
    const int64_t total = count * features_, width = per_feature ? 1 : kLanes;
    for (int64_t i = 0; i < total; i += width) {
      const int64_t n = std::min(width, total - i), f = i % std::max<int64_t>(features_, 1);
      std::fill(va, va + kLanes, 0.0f);
      std::fill(vb, vb + kLanes, 0.0f);
      std::copy_n(a + i, n, va);
      if (b) std::copy_n(b + i, n, vb);
      if (per_feature) {
        row.channel = f;
        row.scale = map_.scale.empty() ? 1.0f : map_.scale[f];
        row.shift = map_.shift.empty() ? 0.0f : map_.shift[f];
      }
      kernels_.map_row(row);
      std::copy_n(vy, n, y + i);
    }
  }
  StepReport report() const override {
    StepReport r;
    r.name = name();
    r.kind = "elementwise";
    r.tile = std::to_string(features_);
    r.kernel = "rows";
    return r;
  }

 private:
  const Op& op_;
  const MapAttributes& map_;
  int64_t features_;
  const cpu::EngineKernels& kernels_;
};

class RowsConcat : public Step {
 public:
  RowsConcat(const Op& op, std::vector<int64_t> features) : Step(op.name), op_(op), features_(std::move(features)) {}
  void run(const Call& call, const Worker&, int64_t image, int64_t count, int64_t) const override {
    const int64_t width = std::accumulate(features_.begin(), features_.end(), int64_t{0});
    for (int64_t n = image; n < image + count; ++n) {
      float* to = call.rows[op_.output] + n * width;
      for (size_t i = 0; i < features_.size(); ++i) {
        std::copy_n(call.rows[op_.inputs[i]] + n * features_[i], features_[i], to);
        to += features_[i];
      }
    }
  }
  StepReport report() const override {
    StepReport r;
    r.name = name();
    r.kind = "concat";
    r.kernel = "rows";
    return r;
  }

 private:
  const Op& op_;
  std::vector<int64_t> features_;
};

}  // namespace

std::unique_ptr<Step> make_linear(const Op& op, const cpu::EngineKernels& kernels) {
  return std::make_unique<Linear>(op, kernels);
}
std::unique_ptr<Step> make_rows_map(const Op& op, int64_t features, const cpu::EngineKernels& kernels) {
  return std::make_unique<RowsMap>(op, features, kernels);
}
std::unique_ptr<Step> make_rows_concat(const Op& op, std::vector<int64_t> features) {
  return std::make_unique<RowsConcat>(op, std::move(features));
}

}  // namespace secateur::engine
