#include "conv_step.h"

#include <algorithm>

namespace secateur::engine {
namespace {

constexpr int64_t kFarFloats = 4 * 1024 * 1024 / 4;  // larger values exceed the second-level cache

}  // namespace

ConvStep::ConvStep(const std::string& name, const ConvAttributes& op, const std::vector<Store>& stores, int x, int y,
                   int residual, const cpu::EngineKernels& kernels)
    : TiledConv(name, {.near_planes = 640, .scratch_floats = 512 * 1024 / 4, .candidates = 8}, op.window,
                op.weights->neurons(), op.weights->per_neuron() / (op.window.kernel[0] * op.window.kernel[1]), stores,
                x, y, residual, kernels),
      op_(op) {}

bool ConvStep::is_worth_trying(bool dense) const {
  // The output channels of a depthwise filter share no input.
  if (dense) return op_.weights->zeros() < 0.8 && neurons_ / op_.groups >= 2 && depth_ >= 2;
  return op_.weights->zeros() > 0.2 || !is_worth_trying(true);
}

// Fitted to some 4,000 measured (layer, tile, chunk) on a CPU with 32 KB of first-level cache. Only the order matters.
void ConvStep::add_cycles(const ConvChoice& c, const TileCost& tile, double& cycles) const {
  const auto channels = static_cast<double>(depth_), k = static_cast<double>(neurons_);
  const auto nonzeros = static_cast<double>(op_.weights->nonzeros());
  const auto weights = static_cast<double>(neurons_ * op_.weights->per_neuron());
  const auto [sums, footprint, far, chunks] = tile;
  const double spills = 3.1 * k * sums * (chunks - 1),
               fills = 0.22 * footprint * channels * static_cast<double>(op_.groups);
  if (c.dense) {
    cycles += weights * (sums + 0.6) * (1 + 0.05 * far) + spills + fills;
  } else {
    cycles += 1.36 * nonzeros * sums + 7 * k * chunks + spills + fills + 0.78 * nonzeros * sums * far;
    if (sums < 4) cycles += 0.6 * nonzeros * (1 - sums / 4);
  }
}

bool ConvStep::has_kernel(bool dense, int rows, int columns) const {
  return dense ? kernels_.dense_planes[step()][rows][columns] != nullptr
               : kernels_.sparse_planes[step()][rows][columns] != nullptr;
}

std::vector<int64_t> ConvStep::chunk_sizes() const {
  std::vector<int64_t> chunks;
  for (int64_t n : {4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512})
    if (n < depth_) chunks.push_back(n);
  chunks.push_back(depth_);
  return chunks;
}

void ConvStep::pack_weights() {
  stream_ = {};
  weights_.clear();
  if (choice_.dense) return pack_dense();
  const int64_t lowest = fit_chunks();
  parts_ = equal_parts(*op_.weights, std::clamp<int64_t>(neurons_ / 8, 1, work_units()), 1);
  Nonzeros nonzeros{*op_.weights, window_.kernel[0] * window_.kernel[1], op_.groups};
  stream_ = pack_stream(nonzeros, parts_, {choice_.chunk, chunks_, stores_[x_].layout.plane(), tap_offsets(), lowest});
}

void ConvStep::pack_dense() {
  constexpr int64_t kBlock = cpu::kDenseBlock;
  const Weights& weights = *op_.weights;
  const int64_t k = neurons_, taps = window_.kernel[0] * window_.kernel[1];
  const int64_t kg = k / op_.groups, blocks = (kg + kBlock - 1) / kBlock;
  set_chunks(choice_.chunk);
  block_floats_ = depth_ * taps * kBlock;
  weights_.assign(static_cast<size_t>(op_.groups * blocks * block_floats_), 0);
  for (int64_t o = 0; o < k; ++o)
    weights.for_each(o, [&](int64_t i, float w) {
      const int64_t block = o / kg * blocks + o % kg / kBlock;
      weights_[block * block_floats_ + i * kBlock + o % kg % kBlock] = w;
    });
  taps_.clear();
  for (int64_t offset : tap_offsets()) taps_.push_back(static_cast<int32_t>(offset * kLanes));
  parts_.assign(1, 0);  // whole blocks, or whole groups if there are several
  const int64_t units = op_.groups > 1 ? op_.groups : blocks, unit = op_.groups > 1 ? kg : kBlock;
  const int64_t parts = std::min<int64_t>(units, work_units());
  for (int64_t p = 1; p <= parts; ++p) parts_.push_back(std::min(units * p / parts * unit, k));
}

int64_t ConvStep::scratch_floats(int64_t) const {
  return chunks_ > 1 ? neurons_ * choice_.rows * choice_.columns * kLanes : 0;
}

int64_t ConvStep::largest_scratch() const {
  return neurons_ * std::max<int64_t>(kernels_.max_sums, cpu::kTileLine) * kLanes;
}

// The input of a tile in a chunk, prefetched by the `rows` rows that are summed before it.
cpu::Ahead ConvStep::ahead(const Worker& worker, const Tile& tile, int64_t chunk, int64_t rows) const {
  const Store& x = stores_[x_];
  const auto& w = window_;
  const int64_t channel = chunk * choice_.chunk, channels = std::min(choice_.chunk, depth_ - channel);
  cpu::Ahead a;
  a.plane = x.plane_floats();
  a.planes_a_row = (channels << 16) / std::max<int64_t>(rows, 1);
  a.row = x.layout.pitch() * kLanes;
  a.x = x.channel(worker.arena, channel) + (tile.row * w.stride[0] - w.padding[0]) * a.row +
        (tile.column * w.stride[1] - w.padding[1]) * kLanes;
  a.rows = (tile.rows - 1) * w.stride[0] + (w.kernel[0] - 1) * w.dilation[0] + 1;
  a.columns = (tile.columns - 1) * w.stride[1] + (w.kernel[1] - 1) * w.dilation[1] + 1;
  return a;
}

void ConvStep::run_range(const Worker& worker, Range tiles, Range parts) const {
  const Store &x = stores_[x_], &y = stores_[y_];
  const Store* residual = residual_ < 0 ? nullptr : &stores_[residual_];
  const auto& w = window_;
  const int64_t x_pitch = x.layout.pitch() * kLanes;
  cpu::TileOut out{};
  out.scratch = worker.scratch;
  out.y_row = y.layout.pitch() * kLanes;
  out.y_plane = y.plane_floats();
  out.bias = op_.bias.empty() ? nullptr : op_.bias.data();
  out.activation = op_.activation.view();
  out.valid_row = y.layout.cells.columns;
  // Not for 1x1 layers: their rows are too short to hide the prefetch.
  out.fetch = w.kernel[0] * w.kernel[1] > 1 && op_.groups == 1 && y.channels * y.plane_floats() > kFarFloats;
  const bool x_is_far = op_.groups == 1 && x.channels * x.plane_floats() > kFarFloats;
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const Tile& tile = tiles_[t];
    const float* from =
        x.channel(worker.arena, 0) + tile.row * w.stride[0] * x_pitch + tile.column * w.stride[1] * kLanes;
    out.y = y.channel(worker.arena, 0) + tile.row * out.y_row + tile.column * kLanes;
    out.valid = y.valid.empty() ? nullptr : y.valid.data() + tile.row * out.valid_row + tile.column;
    if (residual) {
      out.residual_row = residual->layout.pitch() * kLanes;
      out.residual_plane = residual->plane_floats();
      out.residual = residual->channel(worker.arena, 0) + tile.row * out.residual_row + tile.column * kLanes;
    }
    for (int64_t c = 0; c < chunks_; ++c) {
      out.first = c == 0;
      out.last = c + 1 == chunks_;
      if (!choice_.dense) {
        const int64_t first = stream_.row_at[c * n_parts() + parts.begin],
                      last = stream_.row_at[c * n_parts() + parts.end];
        cpu::SparsePlanes args{
            stream_.rows.data() + first, last - first, stream_.offsets.data(), stream_.weights.data(), from,
            w.stride[0] * x_pitch,       out};
        if (x_is_far && !out.last) args.ahead = ahead(worker, tile, c + 1, last - first);
        if (x_is_far && out.last && t + 1 < tiles.end) args.ahead = ahead(worker, tiles_[t + 1], 0, last - first);
        kernels_.sparse_planes[step()][tile.rows][tile.columns](args);
        continue;
      }
      const int64_t kg = neurons_ / op_.groups, taps = static_cast<int64_t>(taps_.size());
      const int64_t blocks = (kg + cpu::kDenseBlock - 1) / cpu::kDenseBlock;
      cpu::DensePlanes args{};
      args.block_stride = block_floats_;
      args.channels = std::min(choice_.chunk, depth_ - c * choice_.chunk);
      args.taps = taps_.data();
      args.tap_count = taps;
      args.x_row = w.stride[0] * x_pitch;
      args.x_plane = x.plane_floats();
      for (int64_t k = parts_[parts.begin]; k < parts_[parts.end];) {
        const int64_t group = k / kg, in_group = k % kg;
        args.k_begin = k;
        args.k_end = std::min(parts_[parts.end], (group + 1) * kg);
        args.weights = weights_.data() + (group * blocks + in_group / cpu::kDenseBlock) * block_floats_ +
                       c * choice_.chunk * taps * cpu::kDenseBlock;
        args.x = from + (group * depth_ + c * choice_.chunk) * args.x_plane;
        args.out = out;
        args.out.scratch = worker.scratch + (k - parts_[parts.begin]) * tile.rows * tile.columns * kLanes;
        kernels_.dense_planes[step()][tile.rows][tile.columns](args);
        k = args.k_end;
      }
    }
  }
}

const char* ConvStep::why() const {
  if (!why_.empty()) return why_.c_str();
  if (sparse_ms_ == 0 && dense_ms_ == 0) return "cost model";
  if (sparse_ms_ == 0) return "nearly no zeros";
  if (dense_ms_ == 0) return "zeros";
  return choice_.dense ? "dense measured faster" : "sparse measured faster";
}

StepReport ConvStep::report() const {
  StepReport r = base_report();
  r.shape = {neurons_, depth_, window_.kernel[0], window_.kernel[1]};
  r.kernel = choice_.dense ? "dense" : "sparse";
  r.why = why();
  r.zeros = op_.weights->zeros();
  r.multiply_adds =
      static_cast<double>(choice_.dense ? neurons_ * op_.weights->per_neuron() : op_.weights->nonzeros()) *
      static_cast<double>(rows_ * columns_);
  return r;
}

}  // namespace secateur::engine
