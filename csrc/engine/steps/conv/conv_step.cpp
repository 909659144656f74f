#include "conv_step.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

namespace secateur::engine {
namespace {

constexpr double kNearLines = 640;                  // what of a chunk is read again from the nearest cache
constexpr int64_t kScratchFloats = 512 * 1024 / 4;  // sums between chunks stay in the second-level cache
constexpr int64_t kMaxOffset = 65535;
constexpr int64_t kFarFloats = 4 * 1024 * 1024 / 4;  // values larger than this lie beyond the second-level cache

}  // namespace

ConvStep::ConvStep(const Op& op, const std::vector<Store>& stores, int x, int y, int residual,
                   const cpu::EngineKernels& kernels)
    : Step(op.name), op_(op), stores_(stores), x_(x), y_(y), residual_(residual), kernels_(kernels) {
  const Store &from = stores[x], &to = stores[y];
  const auto& w = op.window;
  line_ = w.kernel[0] == 1 && w.kernel[1] == 1 && w.stride[0] == 1 && w.stride[1] == 1 && from.layout.is_line() &&
          to.layout.is_line() && w.padding == std::array<int64_t, 4>{0, 0, 0, 0} &&
          (residual < 0 || stores[residual].layout.is_line()) && to.layout.blocks == from.layout.blocks;
  rows_ = line_ ? 1 : to.layout.blocks.rows;
  columns_ = line_ ? to.layout.blocks.vectors() : to.layout.blocks.columns;
}

int64_t ConvStep::tap_offset(int64_t tap) const {
  const auto& w = op_.window;
  return (tap / w.kernel[1] * w.dilation[0] - w.padding[0]) * stores_[x_].layout.pitch() +
         tap % w.kernel[1] * w.dilation[1] - w.padding[1];
}

bool ConvStep::dense_is_worth_trying() const {
  // A depthwise filter has nothing to share between output channels.
  return op_.weights->zeros() < 0.8 && op_.weights->neurons() / op_.groups >= 2 && group_channels() >= 2;
}

bool ConvStep::sparse_is_worth_trying() const { return op_.weights->zeros() > 0.2 || !dense_is_worth_trying(); }

// Fitted to some 4,000 measured (layer, tile, chunk) on a CPU with 32 KB of first-level cache; only the order matters.
double ConvStep::predict(const ConvChoice& c) const {
  const auto& w = op_.window;
  const auto channels = static_cast<double>(group_channels()), k = static_cast<double>(op_.weights->neurons());
  const double chunks = std::ceil(channels / static_cast<double>(c.chunk));
  const auto nonzeros = static_cast<double>(op_.weights->nonzeros());
  const auto weights = static_cast<double>(op_.weights->neurons() * op_.weights->per_neuron());
  double cycles = 0;
  for (int64_t r = 0; r < rows_; r += c.rows)
    for (int64_t q = 0; q < columns_; q += c.columns) {
      const int64_t tile_rows = std::min<int64_t>(c.rows, rows_ - r),
                    tile_columns = std::min<int64_t>(c.columns, columns_ - q);
      const double sums = static_cast<double>(tile_rows * tile_columns);
      // Lines that the tile reads of a channel, and of a chunk.
      const double footprint =
          static_cast<double>(((tile_rows - 1) * w.stride[0] + (w.kernel[0] - 1) * w.dilation[0] + 1) *
                              ((tile_columns - 1) * w.stride[1] + (w.kernel[1] - 1) * w.dilation[1] + 1));
      const double window = static_cast<double>(c.chunk) * footprint;
      const double far = std::max(0.0, 1 - kNearLines / window);  // share of the loads that miss the nearest cache
      const double spills = 3.1 * k * sums * (chunks - 1),
                   fills = 0.22 * footprint * channels * static_cast<double>(op_.groups);
      if (c.dense) {
        cycles += weights * (sums + 0.6) * (1 + 0.05 * far) + spills + fills;
      } else {
        cycles += 1.36 * nonzeros * sums + 7 * k * chunks + spills + fills + 0.78 * nonzeros * sums * far;
        if (sums < 4) cycles += 0.6 * nonzeros * (1 - sums / 4);
      }
    }
  return cycles;
}

std::vector<ConvChoice> ConvStep::candidates(bool dense) const {
  std::vector<std::pair<double, ConvChoice>> all;
  for (const ConvChoice& choice : all_candidates(dense)) all.emplace_back(predict(choice), choice);
  return worth_timing(std::move(all), 8);
}

std::vector<ConvChoice> ConvStep::all_candidates(bool dense) const {
  const auto& w = op_.window;
  const int step = w.stride[1] == 2 ? 1 : 0;
  const bool any_step = w.stride[1] > 2;
  std::vector<ConvChoice> all;
  const int64_t channels = group_channels();
  for (int r = 1; r <= std::min<int64_t>(rows_, cpu::kTileRows); ++r)
    for (int c = 1; c <= std::min<int64_t>(columns_, r == 1 && !dense ? cpu::kTileLine : cpu::kTileColumns); ++c) {
      if (any_step && c > 1) continue;
      if (dense ? kernels_.dense_planes[step][r][c] == nullptr : kernels_.sparse_planes[step][r][c] == nullptr)
        continue;
      std::vector<int64_t> chunks;
      for (int64_t n : {4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512})
        if (n < channels) chunks.push_back(n);
      chunks.push_back(channels);
      for (int64_t n : chunks) all.push_back({dense, r, c, n, false});
    }
  return all;
}

void ConvStep::pack(const ConvChoice& choice) {
  choice_ = choice;
  tiles_ = cut_tiles(rows_, columns_, choice.rows, choice.columns);
  choice_.by_tile = static_cast<int64_t>(tiles_.size()) >= 8;
  if (choice.dense) pack_dense();
  else pack_sparse();
}

Range ConvStep::reach() const {
  Range r{0, 0};
  for (int64_t t = 0; t < op_.window.kernel[0] * op_.window.kernel[1]; ++t)
    r.begin = std::min(r.begin, tap_offset(t)), r.end = std::max(r.end, tap_offset(t));
  return r;
}

bool ConvStep::sparse_fits() const { return reach().end - reach().begin <= kMaxOffset; }

void ConvStep::pack_sparse() {
  const Weights& weights = *op_.weights;
  const int64_t k = weights.neurons(), taps = op_.window.kernel[0] * op_.window.kernel[1], cg = group_channels();
  const int64_t plane = stores_[x_].layout.plane(), kg = k / op_.groups;
  const auto [lowest, highest] = reach();
  const int64_t room = kMaxOffset - (highest - lowest);  // for the step from a chunk's first channel to its last
  if (room < 0) throw std::length_error("engine: " + op_.name + ": the image is too large for 16-bit offsets");
  const int64_t fit = room / plane + 1;  // channels that 16 bits reach
  choice_.chunk = std::clamp<int64_t>(choice_.chunk, 1, std::min(fit, std::max<int64_t>(cg, 1)));
  chunks_ = std::max<int64_t>((cg + choice_.chunk - 1) / choice_.chunk, 1);

  // Parts of equal work.
  const int64_t parts = std::clamp<int64_t>(k / 8, 1, work_units());
  parts_.assign(1, 0);
  std::vector<int64_t> counts(static_cast<size_t>(k * chunks_), 0);
  int64_t total = 0;
  for (int64_t o = 0; o < k; ++o)
    weights.for_each(o, [&](int64_t i, float) { ++counts[(i / taps / choice_.chunk) * k + o], ++total; });
  int64_t sum = 0;
  for (int64_t o = 0; o < k; ++o) {
    for (int64_t c = 0; c < chunks_; ++c) sum += counts[c * k + o];
    if (static_cast<int64_t>(parts_.size()) < parts && sum * parts >= total * static_cast<int64_t>(parts_.size()) &&
        o + 1 < k)
      parts_.push_back(o + 1);
  }
  parts_.push_back(k);

  sparse_rows_.clear();
  row_at_.assign(1, 0);
  const int64_t n_parts = static_cast<int64_t>(parts_.size()) - 1;
  std::vector<int64_t> place(static_cast<size_t>(k * chunks_));  // of the row in sparse_rows_
  for (int64_t c = 0; c < chunks_; ++c)
    for (int64_t p = 0; p < n_parts; ++p) {
      for (int64_t o = parts_[p]; o < parts_[p + 1]; ++o) {
        if (counts[c * k + o] == 0 && c != 0 && c != chunks_ - 1) continue;
        place[c * k + o] = static_cast<int64_t>(sparse_rows_.size());
        sparse_rows_.push_back({static_cast<int32_t>(o), static_cast<int32_t>(o), 0,
                                static_cast<uint32_t>(counts[c * k + o]),
                                (o / kg * cg + c * choice_.chunk) * plane + lowest});
      }
      row_at_.push_back(static_cast<int64_t>(sparse_rows_.size()));
    }
  uint32_t begin = 0;
  for (auto& row : sparse_rows_) row.begin = begin, begin += row.count;
  offsets_.assign(static_cast<size_t>(total), 0);
  weights_.assign(static_cast<size_t>(total), 0);
  std::vector<uint32_t> at(static_cast<size_t>(chunks_));
  for (int64_t o = 0; o < k; ++o) {
    for (int64_t c = 0; c < chunks_; ++c)
      if (counts[c * k + o]) at[c] = sparse_rows_[place[c * k + o]].begin;
    weights.for_each(o, [&](int64_t i, float w) {
      const int64_t channel = i / taps, c = channel / choice_.chunk;
      offsets_[at[c]] = static_cast<uint16_t>((channel - c * choice_.chunk) * plane + tap_offset(i % taps) - lowest);
      weights_[at[c]++] = w;
    });
  }
}

void ConvStep::pack_dense() {
  constexpr int64_t kBlock = cpu::kDenseBlock;
  const Weights& weights = *op_.weights;
  const int64_t k = weights.neurons(), taps = op_.window.kernel[0] * op_.window.kernel[1], cg = group_channels();
  const int64_t kg = k / op_.groups, blocks = (kg + kBlock - 1) / kBlock;
  choice_.chunk = std::clamp<int64_t>(choice_.chunk, 1, cg);
  chunks_ = (cg + choice_.chunk - 1) / choice_.chunk;
  block_floats_ = cg * taps * kBlock;
  weights_.assign(static_cast<size_t>(op_.groups * blocks * block_floats_), 0);
  offsets_.clear();
  sparse_rows_.clear();
  for (int64_t o = 0; o < k; ++o)
    weights.for_each(o, [&](int64_t i, float w) {
      const int64_t block = o / kg * blocks + o % kg / kBlock;
      weights_[block * block_floats_ + i * kBlock + o % kg % kBlock] = w;
    });
  taps_.clear();
  for (int64_t t = 0; t < taps; ++t) taps_.push_back(static_cast<int32_t>(tap_offset(t) * kLanes));
  parts_.assign(1, 0);  // whole blocks; whole groups where there are several
  const int64_t units = op_.groups > 1 ? op_.groups : blocks, unit = op_.groups > 1 ? kg : kBlock;
  const int64_t parts = std::min<int64_t>(units, work_units());
  for (int64_t p = 1; p <= parts; ++p) parts_.push_back(std::min(units * p / parts * unit, k));
}

int64_t ConvStep::tasks() const {
  if (choice_.by_tile) return std::min<int64_t>(static_cast<int64_t>(tiles_.size()), 2 * work_units());
  return static_cast<int64_t>(parts_.size()) - 1;
}

int64_t ConvStep::scratch_floats(int64_t) const {
  return chunks_ > 1 ? op_.weights->neurons() * choice_.rows * choice_.columns * kLanes : 0;
}

int64_t ConvStep::largest_scratch() const {
  return op_.weights->neurons() * std::max<int64_t>(kernels_.max_sums, cpu::kTileLine) * kLanes;
}

void ConvStep::run(const Call&, const Worker& worker, int64_t, int64_t, int64_t task) const {
  const int64_t parts = static_cast<int64_t>(parts_.size()) - 1;
  if (choice_.by_tile) {
    run_range(worker, part(static_cast<int64_t>(tiles_.size()), task, tasks()), {0, parts});
  } else {
    run_range(worker, {0, static_cast<int64_t>(tiles_.size())}, {task, task + 1});
    stores_[y_].fill_frames(kernels_, worker.arena, parts_[task], parts_[task + 1]);
  }
}

void ConvStep::run_all(const Call&, const Worker& worker, int64_t, int64_t) const {
  const int64_t parts = static_cast<int64_t>(parts_.size()) - 1;
  const int64_t scratch = scratch_floats(1);
  const int64_t passes = std::clamp<int64_t>((scratch + kScratchFloats - 1) / kScratchFloats, 1, parts);
  for (int64_t p = 0; p < passes; ++p)
    run_range(worker, {0, static_cast<int64_t>(tiles_.size())}, part(parts, p, passes));
  stores_[y_].fill_frames(kernels_, worker.arena, 0, op_.weights->neurons());
}

// What a tile reads of a chunk, to be fetched by the `rows` rows that are summed before it.
cpu::Ahead ConvStep::ahead(const Worker& worker, const Tile& tile, int64_t chunk, int64_t rows) const {
  const Store& x = stores_[x_];
  const auto& w = op_.window;
  const int64_t channel = chunk * choice_.chunk, channels = std::min(choice_.chunk, group_channels() - channel);
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
  const auto& w = op_.window;
  const int step = w.stride[1] == 2 ? 1 : 0;
  const int64_t n_parts = static_cast<int64_t>(parts_.size()) - 1, x_pitch = x.layout.pitch() * kLanes;
  cpu::TileOut out{};
  out.scratch = worker.scratch;
  out.y_row = y.layout.pitch() * kLanes;
  out.y_plane = y.plane_floats();
  out.bias = op_.bias.empty() ? nullptr : op_.bias.data();
  out.activation = op_.activation.view();
  out.valid_row = y.layout.blocks.columns;
  // Not for 1x1 layers: their rows are too short to hide it.
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
        const int64_t first = row_at_[c * n_parts + parts.begin], last = row_at_[c * n_parts + parts.end];
        cpu::SparsePlanes args{sparse_rows_.data() + first, last - first, offsets_.data(), weights_.data(), from,
                               w.stride[0] * x_pitch,       out};
        if (x_is_far && !out.last) args.ahead = ahead(worker, tile, c + 1, last - first);
        if (x_is_far && out.last && t + 1 < tiles.end) args.ahead = ahead(worker, tiles_[t + 1], 0, last - first);
        kernels_.sparse_planes[step][tile.rows][tile.columns](args);
        continue;
      }
      const int64_t cg = group_channels(), kg = op_.weights->neurons() / op_.groups,
                    taps = static_cast<int64_t>(taps_.size());
      const int64_t blocks = (kg + cpu::kDenseBlock - 1) / cpu::kDenseBlock;
      cpu::DensePlanes args{};
      args.block_stride = block_floats_;
      args.channels = std::min(choice_.chunk, cg - c * choice_.chunk);
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
        args.x = from + (group * cg + c * choice_.chunk) * args.x_plane;
        args.out = out;
        args.out.scratch = worker.scratch + (k - parts_[parts.begin]) * tile.rows * tile.columns * kLanes;
        kernels_.dense_planes[step][tile.rows][tile.columns](args);
        k = args.k_end;
      }
    }
  }
}

void ConvStep::set_measured(double sparse_ms, double dense_ms, std::string why) {
  sparse_ms_ = sparse_ms;
  dense_ms_ = dense_ms;
  why_ = std::move(why);
}

StepReport ConvStep::report() const {
  StepReport r;
  const Layout& to = stores_[y_].layout;
  const auto& w = op_.window;
  char text[160];
  r.name = name();
  r.kind = "conv2d";
  r.shape = {op_.weights->neurons(), group_channels(), w.kernel[0], w.kernel[1]};
  r.kernel = choice_.dense ? "dense" : "sparse";
  std::snprintf(text, sizeof text, "%dx%d of %lldx%lld, %lld ch, %lldx%lld", choice_.rows, choice_.columns,
                static_cast<long long>(rows_), static_cast<long long>(columns_), static_cast<long long>(choice_.chunk),
                static_cast<long long>(to.height), static_cast<long long>(to.width));
  r.tile = text;
  r.why = why_;
  r.zeros = op_.weights->zeros();
  r.chunk = choice_.chunk;
  r.ms = choice_.dense ? dense_ms_ : sparse_ms_;
  r.dense_ms = dense_ms_;
  r.multiply_adds = static_cast<double>(choice_.dense ? op_.weights->neurons() * op_.weights->per_neuron()
                                                      : op_.weights->nonzeros()) *
                    static_cast<double>(rows_ * columns_);
  return r;
}

}  // namespace secateur::engine
