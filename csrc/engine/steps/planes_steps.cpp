#include "planes_steps.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "channel_step.h"

namespace secateur::engine {
namespace {

// Where the lanes of a cell's row lie in an image: their pixels in columns [begin, begin + count) of their cells. Lanes
// with fewer pixels go through `spare`, [16][kSpan].
constexpr int64_t kSpan = 64;
struct LaneRow {
  const float* at[kLanes];
  int64_t present[kLanes];  // how many of `count` are pixels
};

LaneRow lane_row(const Layout& l, const float* image, int64_t row, int64_t begin, int64_t count) {
  const CellGrid& b = l.cells;
  LaneRow lanes;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const int64_t y = lane / b.lane_columns * b.rows + row, x = lane % b.lane_columns * b.columns + begin;
    const bool inside = lane < b.lane_rows * b.lane_columns && y < l.height && x < l.width;
    lanes.present[lane] = inside ? std::min(count, l.width - x) : 0;
    lanes.at[lane] = inside ? image + y * l.width + x : image;
  }
  return lanes;
}

// One channel of an image -> these rows of vectors of its cells.
void image_to_cells(const cpu::EngineKernels& k, const Layout& l, const float* image, float* plane, Range rows) {
  alignas(64) float spare[kLanes][kSpan];
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t c = 0; c < l.cells.columns; c += kSpan) {
      const int64_t count = std::min(kSpan, l.cells.columns - c);
      LaneRow lanes = lane_row(l, image, r, c, count);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        if (lanes.present[lane] == count) continue;
        std::fill_n(std::copy_n(lanes.at[lane], lanes.present[lane], spare[lane]), count - lanes.present[lane], 0.0f);
        lanes.at[lane] = spare[lane];
      }
      k.interleave(plane + (r * l.pitch() + c) * kLanes, lanes.at, count);
    }
}

// The inverse.
void cells_to_image(const cpu::EngineKernels& k, const Layout& l, const float* plane, float* image) {
  alignas(64) float spare[kLanes][kSpan];
  for (int64_t r = 0; r < l.cells.rows; ++r)
    for (int64_t c = 0; c < l.cells.columns; c += kSpan) {
      const int64_t count = std::min(kSpan, l.cells.columns - c);
      const LaneRow lanes = lane_row(l, image, r, c, count);
      float* to[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane)
        to[lane] = lanes.present[lane] == count ? const_cast<float*>(lanes.at[lane]) : spare[lane];
      k.deinterleave(to, plane + (r * l.pitch() + c) * kLanes, count);
      for (int64_t lane = 0; lane < kLanes; ++lane)
        if (to[lane] == spare[lane]) std::copy_n(spare[lane], lanes.present[lane], const_cast<float*>(lanes.at[lane]));
    }
}

class Pack : public ChannelStep {
 public:
  Pack(const StepContext& context, std::string name, int input, int y)
      : ChannelStep(context, std::move(name), "input", y), input_(input), y_(y) {}

 protected:
  int64_t tasks() const override {
    return leaves_halo() ? ChannelStep::tasks() : std::min<int64_t>(channels(), work_units());
  }
  int64_t channels() const override { return store(y_).channels; }
  int64_t rows() const override { return store(y_).layout.cells.rows; }
  void run_rows(const Call& call, const Worker& worker, int64_t image, Range channels, Range rows) const override {
    const Store& y = store(y_);
    const int64_t pixels = y.layout.height * y.layout.width;
    for (int64_t c = channels.begin; c < channels.end; ++c)
      image_to_cells(kernels(), y.layout, call.inputs[input_] + (image * y.channels + c) * pixels,
                     y.channel(worker.arena, c), rows);
  }
  void run_channels(const Call& call, const Worker& worker, int64_t image, int64_t c0, int64_t c1) const override {
    run_rows(call, worker, image, {c0, c1}, {0, rows()});
    store(y_).fill_halos(kernels(), worker.arena, c0, c1);
  }

 private:
  int input_, y_;
};

// Planes -> images in the caller's order, [N][C][H][W]: an output, or a rows value (flattened).
class Unpack : public ChannelStep {
 public:
  Unpack(const StepContext& context, std::string name, const char* kind, int x, std::vector<float*> Call::* to,
         int index)
      : ChannelStep(context, std::move(name), kind, x), x_(x), to_(to), index_(index) {}

 protected:
  int64_t channels() const override { return store(x_).channels; }
  void run_channels(const Call& call, const Worker& worker, int64_t image, int64_t c0, int64_t c1) const override {
    const Store& x = store(x_);
    const int64_t pixels = x.layout.height * x.layout.width;
    for (int64_t c = c0; c < c1; ++c)
      cells_to_image(kernels(), x.layout, x.channel(worker.arena, c),
                     (call.*to_)[index_] + (image * x.channels + c) * pixels);
  }

 private:
  int x_;
  std::vector<float*> Call::* to_;
  int index_;
};

class Repack : public ChannelStep {
 public:
  Repack(const StepContext& context, std::string name, int x, int y)
      : ChannelStep(context, std::move(name), "repack", y),
        x_(x),
        y_(y),
        index_(gather_index(store(y).layout, store(x).layout)) {
    if (store(y).fill_value == 0.0f) return;
    // A nonzero fill changes the halo and the pixels beyond the image, so the index covers all vectors of the plane.
    const Layout& to = store(y).layout;
    const CellGrid& b = to.cells;
    const HaloFill fill = halo_fill(to);
    std::vector<int32_t> whole(static_cast<size_t>(to.plane() * kLanes), -1);
    auto at = [&](int64_t vector) { return whole.begin() + (to.origin() + vector) * kLanes; };
    for (int64_t r = 0; r < b.rows; ++r)
      std::copy_n(index_.begin() + r * b.columns * kLanes, b.columns * kLanes, at(r * to.pitch()));
    for (const auto& copy : fill.copies)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int32_t from = fill.perms[copy.perm].lane[lane];
        *(at(copy.to) + lane) = from < 0 ? -1 : *(at(copy.from) + from);
      }
    index_ = std::move(whole);
  }

 protected:
  int64_t channels() const override { return store(y_).planes(); }
  void run_channels(const Call&, const Worker& worker, int64_t, int64_t c0, int64_t c1) const override {
    const Store &x = store(x_), &y = store(y_);
    const Layout& l = y.layout;
    if (y.fill_value != 0.0f) {
      for (int64_t c = c0; c < c1; ++c)
        kernels().gather(y.channel(worker.arena, c) - l.origin() * kLanes, x.channel(worker.arena, c), index_.data(),
                         static_cast<int64_t>(index_.size()), y.fill_lane());
      return;
    }
    const int64_t line = l.cells.columns * kLanes;
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t r = 0; r < l.cells.rows; ++r)
        kernels().gather(y.channel(worker.arena, c) + r * l.pitch() * kLanes, x.channel(worker.arena, c),
                         index_.data() + r * line, line, y.fill_lane());
    y.fill_halos(kernels(), worker.arena, c0, c1);
  }

 private:
  int x_, y_;
  std::vector<int32_t> index_;
};

class Copy : public ChannelStep {
 public:
  Copy(const StepContext& context, std::string name, int x, int y, int64_t first, std::vector<int64_t> index)
      : ChannelStep(context, std::move(name), "copy", x), x_(x), y_(y), first_(first), index_(std::move(index)) {}

 protected:
  int64_t channels() const override {
    return index_.empty() ? store(x_).channels : static_cast<int64_t>(index_.size());
  }
  void run_channels(const Call&, const Worker& worker, int64_t, int64_t c0, int64_t c1) const override {
    const Store &x = store(x_), &y = store(y_);
    const Layout &from = x.layout, &to = y.layout;
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t r = 0; r < to.cells.rows; ++r)
        std::memcpy(y.channel(worker.arena, first_ + c) + r * to.pitch() * kLanes,
                    x.channel(worker.arena, index_.empty() ? c : index_[c]) + r * from.pitch() * kLanes,
                    static_cast<size_t>(to.cells.columns * kLanes) * sizeof(float));
    y.fill_halos(kernels(), worker.arena, first_ + c0, first_ + c1);
  }

 private:
  int x_, y_;
  int64_t first_;
  std::vector<int64_t> index_;
};

class Pool : public ChannelStep {
 public:
  Pool(const StepContext& context, std::string name, const MaxPoolAttributes& pool, int x, int y)
      : Pool(context, std::move(name), "max_pool", true, pool.window, x, y) {}
  Pool(const StepContext& context, std::string name, const AvgPoolAttributes& pool, int x, int y)
      : Pool(context, std::move(name), "avg_pool", false, pool.window, x, y) {
    std::tie(factor_, scale_) = window_factors(pool, store(x).layout, store(y).layout);
  }

 protected:
  int64_t channels() const override { return store(y_).channels; }
  void run_channels(const Call&, const Worker& worker, int64_t, int64_t c0, int64_t c1) const override {
    const Store &x = store(x_), &y = store(y_);
    const CellGrid& b = y.layout.cells;
    cpu::PoolRow row{};
    row.taps = taps_.data();
    row.tap_count = static_cast<int64_t>(taps_.size());
    row.step = window_.stride[1] * kLanes;
    row.count = b.columns;
    row.is_max = is_max_;
    row.factor = factor_;
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t r = 0; r < b.rows; ++r) {
        row.x = x.channel_row(worker.arena, c, r * window_.stride[0]);
        row.y = y.channel_row(worker.arena, c, r);
        row.scale = scale_.empty() ? nullptr : scale_.data() + r * b.columns * kLanes;
        row.valid = y.valid_row(r);
        kernels().pool_row(row);
      }
    y.fill_halos(kernels(), worker.arena, c0, c1);
  }

 private:
  Pool(const StepContext& context, std::string name, const char* kind, bool is_max, const Window& window, int x, int y)
      : ChannelStep(context, std::move(name), kind, y),
        window_(window),
        is_max_(is_max),
        x_(x),
        y_(y),
        taps_(window_taps(window, store(x).layout)) {}

  const Window& window_;
  bool is_max_;
  int x_, y_;
  float factor_ = 1;
  std::vector<int32_t> taps_;
  std::vector<float> scale_;
};

class Map : public ChannelStep {
 public:
  Map(const StepContext& context, std::string name, const MapAttributes& map, int x, int other, int rows, int y)
      : ChannelStep(context, std::move(name), "elementwise", y), map_(map), x_(x), other_(other), rows_(rows), y_(y) {}

 protected:
  int64_t channels() const override { return store(y_).channels; }
  void run_channels(const Call& call, const Worker& worker, int64_t image, int64_t c0, int64_t c1) const override {
    const Store &x = store(x_), &y = store(y_);
    const CellGrid& b = y.layout.cells;
    cpu::MapRow row{};
    row.count = b.columns;
    row.activation = map_.activation.view();
    row.join = other_ >= 0 ? map_.join : cpu::Binary::kNone;
    for (int64_t c = c0; c < c1; ++c) {
      row.channel = c;
      row.scale = map_.scale.empty() ? 1.0f : map_.scale[c];
      row.shift = map_.shift.empty() ? 0.0f : map_.shift[c];
      if (rows_ >= 0) {  // one number for all pixels: folded into scale and shift
        const float v = call.rows[rows_][image * y.channels + c];
        if (map_.join == cpu::Binary::kMultiply) row.scale *= v, row.shift *= v;
        else row.shift += v;
      }
      for (int64_t r = 0; r < b.rows; ++r) {
        row.a = x.channel_row(worker.arena, c, r);
        if (other_ >= 0) row.b = store(other_).channel_row(worker.arena, c, r);
        row.y = y.channel_row(worker.arena, c, r);
        row.valid = y.valid_row(r);
        kernels().map_row(row);
      }
    }
    y.fill_halos(kernels(), worker.arena, c0, c1);
  }

 private:
  const MapAttributes& map_;
  int x_, other_, rows_, y_;
};

class GlobalPool : public ChannelStep {
 public:
  GlobalPool(const StepContext& context, std::string name, int x, int rows)
      : ChannelStep(context, std::move(name), "global_avg_pool", x), x_(x), value_(rows) {}

 protected:
  int64_t channels() const override { return store(x_).channels; }
  void run_channels(const Call& call, const Worker& worker, int64_t image, int64_t c0, int64_t c1) const override {
    const Store& x = store(x_);
    const Layout& l = x.layout;
    const float factor = 1.0f / static_cast<float>(l.height * l.width);
    for (int64_t c = c0; c < c1; ++c) {
      alignas(64) float sums[kLanes];
      kernels().lane_sums(x.channel(worker.arena, c), l.cells.rows, l.cells.columns, l.pitch() * kLanes, sums);
      for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
      call.rows[value_][image * x.channels + c] = sums[0] * factor;
    }
  }

 private:
  int x_, value_;
};

}  // namespace

std::unique_ptr<HaloedStep> make_pack(const StepContext& context, std::string name, int input, int y) {
  return std::make_unique<Pack>(context, std::move(name), input, y);
}
std::unique_ptr<Step> make_unpack(const StepContext& context, std::string name, int x, int output) {
  return std::make_unique<Unpack>(context, std::move(name), "output", x, &Call::outputs, output);
}
std::unique_ptr<Step> make_repack(const StepContext& context, std::string name, int x, int y) {
  return std::make_unique<Repack>(context, std::move(name), x, y);
}
std::unique_ptr<Step> make_copy(const StepContext& context, std::string name, int x, int y, int64_t first,
                                std::vector<int64_t> index) {
  return std::make_unique<Copy>(context, std::move(name), x, y, first, std::move(index));
}
std::unique_ptr<Step> make_max_pool(const StepContext& context, std::string name, const MaxPoolAttributes& pool, int x,
                                    int y) {
  return std::make_unique<Pool>(context, std::move(name), pool, x, y);
}
std::unique_ptr<Step> make_avg_pool(const StepContext& context, std::string name, const AvgPoolAttributes& pool, int x,
                                    int y) {
  return std::make_unique<Pool>(context, std::move(name), pool, x, y);
}
std::unique_ptr<Step> make_map(const StepContext& context, std::string name, const MapAttributes& map, int x, int other,
                               int rows, int y) {
  return std::make_unique<Map>(context, std::move(name), map, x, other, rows, y);
}
std::unique_ptr<Step> make_global_pool(const StepContext& context, std::string name, int x, int rows) {
  return std::make_unique<GlobalPool>(context, std::move(name), x, rows);
}
std::unique_ptr<Step> make_flatten(const StepContext& context, std::string name, int x, int rows) {
  return std::make_unique<Unpack>(context, std::move(name), "flatten", x, &Call::rows, rows);
}

}  // namespace secateur::engine
