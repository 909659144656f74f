#include "tiled_conv.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <utility>

namespace secateur::engine {
namespace {

constexpr int64_t kMaxOffset = 65535;

// Cuts into tiles of height x width vectors, smaller ones at the lower and right edge.
std::vector<Tile> cut_tiles(int64_t rows, int64_t columns, int64_t height, int64_t width) {
  std::vector<Tile> tiles;
  for (int64_t r = 0; r < rows; r += height)
    for (int64_t c = 0; c < columns; c += width)
      tiles.push_back(
          {r, c, static_cast<int>(std::min(height, rows - r)), static_cast<int>(std::min(width, columns - c))});
  return tiles;
}

}  // namespace

TiledConv::TiledConv(const std::string& name, const Limits& limits, const Window& window, int64_t neurons,
                     int64_t depth, const std::vector<Store>& stores, int x, int y, int residual,
                     const cpu::EngineKernels& kernels)
    : HaloedStep(name),
      window_(window),
      neurons_(neurons),
      depth_(depth),
      stores_(stores),
      x_(x),
      y_(y),
      residual_(residual),
      kernels_(kernels),
      limits_(limits) {
  const Store &from = stores[x], &to = stores[y];
  const auto& w = window;
  line_ = w.kernel[0] == 1 && w.kernel[1] == 1 && w.stride[0] == 1 && w.stride[1] == 1 && from.layout.is_line() &&
          to.layout.is_line() && w.padding == std::array<int64_t, 4>{0, 0, 0, 0} &&
          (residual < 0 || stores[residual].layout.is_line()) && to.layout.cells == from.layout.cells;
  rows_ = line_ ? 1 : to.layout.cells.rows;
  columns_ = line_ ? to.layout.cells.vectors() : to.layout.cells.columns;
}

// ---- which choice ----

double TiledConv::predict(const ConvChoice& c) const {
  const auto& w = window_;
  TileCost tile{};
  tile.chunks = std::ceil(static_cast<double>(depth_) / static_cast<double>(c.chunk));
  double cycles = 0;
  for (int64_t r = 0; r < rows_; r += c.rows)
    for (int64_t q = 0; q < columns_; q += c.columns) {
      const int64_t tile_rows = std::min<int64_t>(c.rows, rows_ - r),
                    tile_columns = std::min<int64_t>(c.columns, columns_ - q);
      tile.sums = static_cast<double>(tile_rows * tile_columns);
      tile.footprint = static_cast<double>(((tile_rows - 1) * w.stride[0] + (w.kernel[0] - 1) * w.dilation[0] + 1) *
                                           ((tile_columns - 1) * w.stride[1] + (w.kernel[1] - 1) * w.dilation[1] + 1));
      tile.far = std::max(0.0, 1 - limits_.near_planes / (static_cast<double>(c.chunk) * tile.footprint));
      add_cycles(c, tile, cycles);
    }
  return cycles;
}

std::vector<ConvChoice> TiledConv::all_candidates(bool dense) const {
  const std::vector<int64_t> chunks = chunk_sizes();
  std::vector<ConvChoice> all;
  for (int r = 1; r <= std::min<int64_t>(rows_, cpu::kTileRows); ++r)
    for (int c = 1; c <= std::min<int64_t>(columns_, r == 1 && !dense ? cpu::kTileLine : cpu::kTileColumns); ++c) {
      if ((window_.stride[1] > 2 && c > 1) || !has_kernel(dense, r, c)) continue;
      for (int64_t n : chunks) all.push_back({dense, r, c, n});
    }
  return all;
}

// Predictions err, so candidates up to 1.5 times the best predicted time are kept.
std::vector<ConvChoice> TiledConv::candidates(bool dense) const {
  std::vector<std::pair<double, ConvChoice>> all;
  for (const ConvChoice& choice : all_candidates(dense)) all.emplace_back(predict(choice), choice);
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<ConvChoice> best;
  for (const auto& [cycles, choice] : all) {
    if (cycles > 1.5 * all.front().first || best.size() >= limits_.candidates) break;
    best.push_back(choice);
  }
  return best;
}

// ---- packing ----

std::vector<int64_t> TiledConv::tap_offsets() const {
  const auto& w = window_;
  std::vector<int64_t> offsets;
  for (int64_t t = 0; t < w.kernel[0] * w.kernel[1]; ++t)
    offsets.push_back((t / w.kernel[1] * w.dilation[0] - w.padding[0]) * stores_[x_].layout.pitch() +
                      t % w.kernel[1] * w.dilation[1] - w.padding[1]);
  return offsets;
}

Range TiledConv::reach() const {
  Range r{0, 0};
  for (int64_t offset : tap_offsets()) r.begin = std::min(r.begin, offset), r.end = std::max(r.end, offset);
  return r;
}

bool TiledConv::offsets_fit() const { return reach().end - reach().begin <= kMaxOffset; }

void TiledConv::set_chunks(int64_t chunk) {
  choice_.chunk = std::clamp<int64_t>(chunk, 1, depth_);
  chunks_ = (depth_ + choice_.chunk - 1) / choice_.chunk;
}

int64_t TiledConv::fit_chunks() {
  const auto [lowest, highest] = reach();
  const int64_t room = kMaxOffset - (highest - lowest);  // from a chunk's first plane to its last
  if (room < 0) unplannable(name(), "the image is too large for 16-bit offsets");
  set_chunks(std::min(choice_.chunk, room / stores_[x_].layout.plane() + 1));
  return lowest;
}

void TiledConv::pack(const ConvChoice& choice) {
  choice_ = choice;
  tiles_ = cut_tiles(rows_, columns_, choice.rows, choice.columns);
  by_tile_ = tiles_.size() >= 8;
  pack_weights();
}

// ---- running ----

int64_t TiledConv::tasks() const {
  return by_tile_ ? std::min<int64_t>(static_cast<int64_t>(tiles_.size()), 2 * work_units()) : n_parts();
}

void TiledConv::run(const Call&, const Worker& worker, int64_t, int64_t, int64_t task) const {
  const auto tiles = static_cast<int64_t>(tiles_.size());
  if (by_tile_) return run_range(worker, part(tiles, task, tasks()), {0, n_parts()});
  run_range(worker, {0, tiles}, {task, task + 1});
  fill_halos(worker, {parts_[task], parts_[task + 1]});
}

void TiledConv::run_all(const Call&, const Worker& worker, int64_t, int64_t) const {
  const int64_t scratch = scratch_floats(1);
  const int64_t passes =
      std::clamp<int64_t>((scratch + limits_.scratch_floats - 1) / limits_.scratch_floats, 1, n_parts());
  for (int64_t p = 0; p < passes; ++p)
    run_range(worker, {0, static_cast<int64_t>(tiles_.size())}, part(n_parts(), p, passes));
  fill_halos(worker, {0, neurons_});
}

void TiledConv::fill_halos(const Worker& worker, Range channels) const {
  const Store& y = stores_[y_];
  if (y.bytes) y.fill_halos(kernels_, worker.arena, channels.begin / 4, (channels.end + 3) / 4);
  else y.fill_halos(kernels_, worker.arena, channels.begin, channels.end);
}

StepReport TiledConv::base_report() const {
  StepReport r;
  const Layout& to = stores_[y_].layout;
  char text[160];
  r.name = name();
  r.kind = "conv2d";
  std::snprintf(text, sizeof text, "%dx%d of %lldx%lld, %lld %s, %lldx%lld", choice_.rows, choice_.columns,
                static_cast<long long>(rows_), static_cast<long long>(columns_), static_cast<long long>(choice_.chunk),
                stores_[x_].bytes ? "quads" : "ch", static_cast<long long>(to.height),
                static_cast<long long>(to.width));
  r.tile = text;
  r.chunk = choice_.chunk;
  r.ms = ms();
  r.dense_ms = dense_ms_;
  return r;
}

}  // namespace secateur::engine
