#include "int8_steps.h"

#include <algorithm>
#include <cstring>

#include "engine/program/int8_layer.h"
#include "engine/steps/channel_step.h"
#include "int8_rows.h"

namespace secateur::engine {
namespace {

const MapAttributes kIdentity;

class Int8Pool : public ChannelStep {
 public:
  Int8Pool(const StepContext& context, std::string name, const MaxPoolAttributes& pool, int x, int y)
      : Int8Pool(context, std::move(name), "max_pool", true, pool.window, x, y) {}
  Int8Pool(const StepContext& context, std::string name, const AvgPoolAttributes& pool, int x, int y)
      : Int8Pool(context, std::move(name), "avg_pool", false, pool.window, x, y) {
    std::tie(factor_, scale_) = window_factors(pool, store(x).layout, store(y).layout);
    const float ratio = store(x).scale / store(y).scale;
    factor_ *= ratio;
    for (float& s : scale_) s *= ratio;
  }

 protected:
  int64_t channels() const override { return store(y_).planes(); }
  void run_channels(const Call&, const Worker& worker, int64_t, int64_t c0, int64_t c1) const override {
    const Store &x = store(x_), &y = store(y_);
    const CellGrid& b = y.layout.cells;
    cpu::Int8PoolRow row{};
    row.taps = taps_.data();
    row.tap_count = static_cast<int64_t>(taps_.size());
    row.step = window_.stride[1] * kVectorBytes;
    row.count = b.columns;
    row.is_max = is_max_;
    row.factor = factor_;
    row.zero_point = x.zero_point;
    row.y_zero_point = y.zero_point;
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t r = 0; r < b.rows; ++r) {
        row.x = x.row_bytes(worker.arena, c, r * window_.stride[0]);
        row.y = y.row_bytes(worker.arena, c, r);
        row.scale = scale_.empty() ? nullptr : scale_.data() + r * b.columns * kLanes;
        row.valid = y.valid_row(r);
        quads().pool_row(row);
      }
    y.fill_halos(kernels(), worker.arena, c0, c1);
  }

 private:
  Int8Pool(const StepContext& context, std::string name, const char* kind, bool is_max, const Window& window, int x,
           int y)
      : ChannelStep(context, std::move(name), kind, y), window_(window), is_max_(is_max), x_(x), y_(y) {
    for (int32_t tap : window_taps(window, store(x).layout)) taps_.push_back(tap * 4);
  }

  const Window& window_;
  bool is_max_;
  int x_, y_;
  std::vector<int32_t> taps_;
  float factor_ = 1;
  std::vector<float> scale_;
};

// Quad by quad: int8 inputs become floats in scratch, engine.h's kernel runs, and int8 outputs are quantized.
class Int8Map : public ChannelStep {
 public:
  // straight: only a cast from float to int8, no arithmetic.
  Int8Map(const StepContext& context, std::string name, const char* kind, bool straight, const MapAttributes& map,
          const std::vector<uint8_t>& theta, int x, int other, int rows, int y)
      : ChannelStep(context, std::move(name), kind, y),
        map_(map),
        theta_(padded(theta)),
        straight_(straight),
        x_(x),
        other_(other),
        rows_(rows),
        y_(y) {}
  int64_t scratch_floats(int64_t) const override { return 12 * store(y_).layout.cells.columns * kLanes; }

 protected:
  int64_t channels() const override { return whole_quads(store(y_).channels); }
  int64_t rows() const override { return store(y_).layout.cells.rows; }
  void run_channels(const Call& call, const Worker& worker, int64_t image, int64_t c0, int64_t c1) const override {
    const Store& y = store(y_);
    run_rows(call, worker, image, {c0, c1}, {0, rows()});
    if (y.bytes) y.fill_halos(kernels(), worker.arena, c0, c1);
    else y.fill_halos(kernels(), worker.arena, 4 * c0, std::min(4 * c1, y.channels));
  }
  void run_rows(const Call& call, const Worker& worker, int64_t image, Range channels, Range rows) const override {
    const Store &x = store(x_), &y = store(y_);
    const CellGrid& b = y.layout.cells;
    const int64_t line = b.columns * kLanes;
    float *spare_a = worker.scratch, *spare_b = spare_a + 4 * line, *spare_y = spare_b + 4 * line;
    for (int64_t q = channels.begin; q < channels.end; ++q) {
      const int64_t n = std::min<int64_t>(4, y.channels - 4 * q);
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        float *a[4] = {}, *other[4] = {}, *to[4] = {};
        real_rows(worker, x, q, n, r, spare_a, a);
        if (other_ >= 0) real_rows(worker, store(other_), q, n, r, spare_b, other);
        const uint16_t* valid = y.valid_row(r);
        for (int64_t j = 0; j < n; ++j)
          to[j] = straight_ ? a[j] : y.bytes ? spare_y + j * line : y.channel_row(worker.arena, 4 * q + j, r);
        for (int64_t j = 0; j < n && !straight_; ++j) map_one(call, image, 4 * q + j, a[j], other[j], to[j], valid);
        if (!y.bytes) continue;
        cpu::Int8Cast cast{};
        cast.quads = y.row_bytes(worker.arena, q, r);
        std::copy_n(to, 4, cast.real);
        cast.count = b.columns;
        cast.scale = static_cast<float>(1.0 / y.scale);
        cast.zero_point = y.zero_point;
        cast.theta = theta_.empty() ? nullptr : theta_.data() + 4 * q;
        cast.valid = valid;
        quads().quantize(cast);
      }
    }
  }

 private:
  void real_rows(const Worker& worker, const Store& s, int64_t quad, int64_t n, int64_t r, float* spare,
                 float** rows) const {
    const int64_t columns = store(y_).layout.cells.columns;
    for (int64_t j = 0; j < n; ++j)
      rows[j] = s.bytes ? spare + j * columns * kLanes : s.channel_row(worker.arena, 4 * quad + j, r);
    if (!s.bytes) return;
    cpu::Int8Cast cast{};
    cast.quads = s.row_bytes(worker.arena, quad, r);
    std::copy_n(rows, 4, cast.real);
    cast.count = columns;
    cast.scale = s.scale;
    cast.zero_point = s.zero_point;
    quads().dequantize(cast);
  }
  void map_one(const Call& call, int64_t image, int64_t c, const float* a, const float* b, float* y,
               const uint16_t* valid) const {
    cpu::MapRow row{};
    row.a = a;
    row.b = b;
    row.y = y;
    row.count = store(y_).layout.cells.columns;
    row.scale = map_.scale.empty() ? 1.0f : map_.scale[c];
    row.shift = map_.shift.empty() ? 0.0f : map_.shift[c];
    if (rows_ >= 0) {  // one number for all pixels: folded into scale and shift
      const float v = call.rows[rows_][image * store(y_).channels + c];
      if (map_.join == cpu::Binary::kMultiply) row.scale *= v, row.shift *= v;
      else row.shift += v;
    }
    row.join = b ? map_.join : cpu::Binary::kNone;
    row.activation = map_.activation.view();
    row.channel = c;
    row.valid = valid;
    kernels().map_row(row);
  }

  const MapAttributes& map_;
  std::vector<uint8_t> theta_;
  bool straight_;
  int x_, other_, rows_, y_;
};

// Moves channels between positions within quads.
class Int8Copy : public ChannelStep {
 public:
  Int8Copy(const StepContext& context, std::string name, int x, int y, int64_t first, std::vector<int64_t> index)
      : ChannelStep(context, std::move(name), "copy", x), x_(x), y_(y), first_(first), index_(std::move(index)) {
    if (!index_.empty()) return;
    for (int64_t c = 0; c < store(x).channels; ++c) index_.push_back(c);
  }

 protected:
  int64_t channels() const override { return whole_quads(first_ + static_cast<int64_t>(index_.size())) - first_ / 4; }
  void run_channels(const Call&, const Worker& worker, int64_t, int64_t c0, int64_t c1) const override {
    const Store &x = store(x_), &y = store(y_);
    const Layout &from = x.layout, &to = y.layout;
    const int64_t line = to.cells.columns * kLanes, quad0 = first_ / 4;
    for (int64_t q = quad0 + c0; q < quad0 + c1; ++q)
      for (int64_t r = 0; r < to.cells.rows; ++r) {
        auto* out = reinterpret_cast<uint32_t*>(y.plane_bytes(worker.arena, q) + r * to.pitch() * kVectorBytes);
        for (int64_t j = 0; j < 4; ++j) {
          const int64_t i = 4 * q + j - first_;
          if (i < 0 || i >= static_cast<int64_t>(index_.size())) continue;
          const int64_t c = index_[i];
          const auto* in =
              reinterpret_cast<const uint32_t*>(x.plane_bytes(worker.arena, c / 4) + r * from.pitch() * kVectorBytes);
          const int shift = static_cast<int>(c % 4 * 8), place = static_cast<int>(j * 8);
          const uint32_t rest = ~(0xffu << place);
          for (int64_t l = 0; l < line; ++l) out[l] = (out[l] & rest) | (in[l] >> shift & 0xffu) << place;
        }
      }
    y.fill_halos(kernels(), worker.arena, quad0 + c0, quad0 + c1);
  }

 private:
  int x_, y_;
  int64_t first_;
  std::vector<int64_t> index_;
};

class Int8Flatten : public ChannelStep {
 public:
  Int8Flatten(const StepContext& context, std::string name, int x, int rows)
      : ChannelStep(context, std::move(name), "flatten", x), x_(x), value_(rows) {
    const Layout& l = store(x).layout;
    place_.assign(static_cast<size_t>(l.height * l.width), 0);
    for_each_lane(l.cells, [&](int64_t r, int64_t c, int64_t lane, int64_t row, int64_t column) {
      if (lane < l.cells.lane_rows * l.cells.lane_columns && row < l.height && column < l.width)
        place_[row * l.width + column] = static_cast<int32_t>(((r * l.pitch() + c) * kLanes + lane) * 4);
    });
  }

 protected:
  int64_t channels() const override { return store(x_).planes(); }
  void run_channels(const Call& call, const Worker& worker, int64_t image, int64_t c0, int64_t c1) const override {
    const Store& x = store(x_);
    const auto pixels = static_cast<int64_t>(place_.size());
    const int64_t features = x.channels * pixels;
    uint8_t* to = bytes_of(call, value_, image, features);
    for (int64_t c = 4 * c0; c < std::min(4 * c1, x.channels); ++c) {
      const uint8_t* plane = x.plane_bytes(worker.arena, c / 4) + c % 4;
      for (int64_t i = 0; i < pixels; ++i) to[c * pixels + i] = plane[place_[i]];
    }
    if (c1 == channels()) std::fill(to + features, to + row_bytes(features), uint8_t{0});
  }

 private:
  int x_, value_;
  std::vector<int32_t> place_;
};

// Pad pixels hold zero_point, so they add nothing.
class Int8GlobalPool : public ChannelStep {
 public:
  Int8GlobalPool(const StepContext& context, std::string name, const std::optional<Quant>& quant, int x, int rows)
      : ChannelStep(context, std::move(name), "global_avg_pool", x), quant_(quant), x_(x), value_(rows) {
    const Layout& l = store(x).layout;
    const double pixels = static_cast<double>(l.height * l.width);
    factor_ = static_cast<float>(double{store(x).scale} / (pixels * (quant ? double{quant->scale} : 1.0)));
  }

 protected:
  int64_t channels() const override { return store(x_).planes(); }
  void run_channels(const Call& call, const Worker& worker, int64_t image, int64_t c0, int64_t c1) const override {
    const Store& x = store(x_);
    const Layout& l = x.layout;
    const auto vectors = static_cast<int32_t>(l.cells.vectors());
    for (int64_t q = c0; q < c1; ++q) {
      alignas(64) int32_t sums[4][kLanes];
      quads().lane_sums(x.plane_bytes(worker.arena, q), l.cells.rows, l.cells.columns, l.pitch() * kVectorBytes,
                        sums[0]);
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t c = 4 * q + j;
        int32_t sum = 0;
        for (int32_t s : sums[j]) sum += s - vectors * x.zero_point;
        const float v = static_cast<float>(sum) * factor_;
        if (quant_) bytes_of(call, value_, image, x.channels)[c] = byte_of(v, quant_->zero_point);
        else if (c < x.channels) call.rows[value_][image * x.channels + c] = v;
      }
    }
  }

 private:
  std::optional<Quant> quant_;
  int x_, value_;
  float factor_;
};

}  // namespace

std::unique_ptr<Step> make_int8_max_pool(const StepContext& context, std::string name, const MaxPoolAttributes& pool,
                                         int x, int y) {
  return std::make_unique<Int8Pool>(context, std::move(name), pool, x, y);
}
std::unique_ptr<Step> make_int8_avg_pool(const StepContext& context, std::string name, const AvgPoolAttributes& pool,
                                         int x, int y) {
  return std::make_unique<Int8Pool>(context, std::move(name), pool, x, y);
}
std::unique_ptr<HaloedStep> make_int8_quantize(const StepContext& context, std::string name,
                                               const QuantizeAttributes& cast, int x, int y) {
  return std::make_unique<Int8Map>(context, std::move(name), "quantize", true, kIdentity, cast.theta, x, -1, -1, y);
}
std::unique_ptr<HaloedStep> make_int8_dequantize(const StepContext& context, std::string name, int x, int y) {
  return std::make_unique<Int8Map>(context, std::move(name), "dequantize", false, kIdentity, std::vector<uint8_t>{}, x,
                                   -1, -1, y);
}
std::unique_ptr<HaloedStep> make_int8_map(const StepContext& context, std::string name, const MapAttributes& map, int x,
                                          int other, int rows, int y) {
  return std::make_unique<Int8Map>(context, std::move(name), "elementwise", false, map, map.theta, x, other, rows, y);
}
std::unique_ptr<Step> make_int8_copy(const StepContext& context, std::string name, int x, int y, int64_t first,
                                     std::vector<int64_t> index) {
  return std::make_unique<Int8Copy>(context, std::move(name), x, y, first, std::move(index));
}
std::unique_ptr<Step> make_int8_flatten(const StepContext& context, std::string name, int x, int rows) {
  return std::make_unique<Int8Flatten>(context, std::move(name), x, rows);
}
std::unique_ptr<Step> make_int8_global_pool(const StepContext& context, std::string name,
                                            const std::optional<Quant>& quant, int x, int rows) {
  return std::make_unique<Int8GlobalPool>(context, std::move(name), quant, x, rows);
}

}  // namespace secateur::engine
