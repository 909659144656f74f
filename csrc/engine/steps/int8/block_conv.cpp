#include "block_conv.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

namespace secateur::engine {
namespace {

constexpr double kNearLines = 440;                  // what of a chunk is read again from the nearest cache
constexpr int64_t kScratchFloats = 256 * 1024 / 4;  // sums between chunks stay in the second-level cache
constexpr int64_t kMaxOffset = 65535;

}  // namespace

BlockConvStep::BlockConvStep(const Op& op, const std::vector<Store>& stores, int x, int y, int residual,
                             const cpu::EngineKernels& kernels, const cpu::QuadKernels& quads)
    : FramedStep(op.name),
      op_(op),
      stores_(stores),
      x_(x),
      y_(y),
      residual_(residual),
      kernels_(kernels),
      quads_(quads) {
  const Store &from = stores[x], &to = stores[y];
  const auto& w = op.window;
  shape_ = {w.kernel[0] * w.kernel[1], op.groups, quads.pairs};
  input_quads_ = shape_.quads(*op.bytes);
  blocks_ = count_blocks(*op.bytes, shape_);
  whole_blocks_ = quads.pairs ? count_blocks(*op.bytes, {shape_.taps, shape_.groups}) : blocks_;
  squares_ = squares_exist(*op.bytes, shape_) ? count_squares(*op.bytes, shape_) : 0;
  line_ = w.kernel[0] == 1 && w.kernel[1] == 1 && w.stride[0] == 1 && w.stride[1] == 1 && from.layout.is_line() &&
          to.layout.is_line() && w.padding == std::array<int64_t, 4>{0, 0, 0, 0} &&
          (residual < 0 || stores[residual].layout.is_line()) && to.layout.blocks == from.layout.blocks;
  rows_ = line_ ? 1 : to.layout.blocks.rows;
  columns_ = line_ ? to.layout.blocks.vectors() : to.layout.blocks.columns;
  end_ = op.end.view(op, residual < 0 ? 0 : stores[residual].zero_point);
}

int64_t BlockConvStep::tap_offset(int64_t tap) const {
  const auto& w = op_.window;
  return (tap / w.kernel[1] * w.dilation[0] - w.padding[0]) * stores_[x_].layout.pitch() +
         tap % w.kernel[1] * w.dilation[1] - w.padding[1];
}

// As ConvStep's, with a line of the cache for four channels; only the order matters.
double BlockConvStep::predict(const BlockChoice& c) const {
  const auto& w = op_.window;
  const auto k = static_cast<double>(op_.bytes->neurons()), blocks = static_cast<double>(blocks_);
  const auto squares = static_cast<double>(squares_);
  const double chunks = std::ceil(static_cast<double>(input_quads_) / static_cast<double>(c.chunk));
  double cycles = 0;
  for (int64_t r = 0; r < rows_; r += c.rows)
    for (int64_t q = 0; q < columns_; q += c.columns) {
      const int64_t tile_rows = std::min<int64_t>(c.rows, rows_ - r),
                    tile_columns = std::min<int64_t>(c.columns, columns_ - q);
      const double sums = static_cast<double>(tile_rows * tile_columns);
      const double footprint =
          static_cast<double>(((tile_rows - 1) * w.stride[0] + (w.kernel[0] - 1) * w.dilation[0] + 1) *
                              ((tile_columns - 1) * w.stride[1] + (w.kernel[1] - 1) * w.dilation[1] + 1));
      const double far = std::max(0.0, 1 - kNearLines / (static_cast<double>(c.chunk) * footprint));
      cycles += 5 * k * sums + 3.1 * k * sums * (chunks - 1) +
                0.25 * footprint * static_cast<double>(input_quads_ * op_.groups);
      if (c.squares) {
        cycles += 4 * squares * (sums + 0.6) * (1 + 0.05 * far) + 4 * k * chunks;
      } else {
        cycles += 1.2 * blocks * sums + 10 * k * chunks + 0.8 * blocks * sums * far;
        if (sums < 4) cycles += 0.8 * blocks * (1 - sums / 4);
      }
    }
  return cycles;
}

// Squares multiply the zeros of blocks that their neighbours fill, too.
bool BlockConvStep::squares_are_worth_trying() const { return squares_ > 0 && 4 * squares_ < 2 * blocks_; }

BlockChoice BlockConvStep::likeliest() const {
  const BlockChoice blocks = candidates(false).front();
  if (!squares_are_worth_trying()) return blocks;
  const BlockChoice squares = candidates(true).front();
  return predict(squares) < predict(blocks) ? squares : blocks;
}

std::vector<BlockChoice> BlockConvStep::candidates(bool squares) const {
  std::vector<std::pair<double, BlockChoice>> all;
  for (const BlockChoice& choice : all_candidates(squares)) all.emplace_back(predict(choice), choice);
  return worth_timing(std::move(all), 10);
}

std::vector<BlockChoice> BlockConvStep::all_candidates(bool squares) const {
  const auto& w = op_.window;
  const int step = w.stride[1] == 2 ? 1 : 0;
  const bool any_step = w.stride[1] > 2;
  std::vector<BlockChoice> all;
  for (int r = 1; r <= std::min<int64_t>(rows_, cpu::kTileRows); ++r)
    for (int c = 1; c <= std::min<int64_t>(columns_, r == 1 && !squares ? cpu::kTileLine : cpu::kTileColumns); ++c) {
      if (any_step && c > 1) continue;
      if (squares ? quads_.square_planes[step][r][c] == nullptr : quads_.block_planes[step][r][c] == nullptr) continue;
      for (int64_t n : {2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512}) {
        all.push_back({squares, r, c, std::min(n, input_quads_)});
        if (n >= input_quads_) break;
      }
    }
  return all;
}

void BlockConvStep::pack(const BlockChoice& choice) {
  choice_ = choice;
  tiles_ = cut_tiles(rows_, columns_, choice.rows, choice.columns);
  by_tile_ = static_cast<int64_t>(tiles_.size()) >= 8;

  std::vector<int64_t> offsets;
  for (int64_t t = 0; t < shape_.taps; ++t) offsets.push_back(tap_offset(t));
  const int64_t lowest = std::min<int64_t>(0, *std::min_element(offsets.begin(), offsets.end())),
                highest = std::max<int64_t>(0, *std::max_element(offsets.begin(), offsets.end()));
  const int64_t plane = stores_[x_].layout.plane(), room = kMaxOffset - (highest - lowest);
  if (room < 0) throw std::length_error("engine: " + op_.name + ": the image is too large for 16-bit offsets");
  choice_.chunk = std::clamp<int64_t>(choice_.chunk, 1, std::min(room / plane + 1, input_quads_));
  chunks_ = (input_quads_ + choice_.chunk - 1) / choice_.chunk;
  parts_ = block_parts(*op_.bytes, std::clamp<int64_t>(op_.bytes->neurons() / 8, 1, work_units()));
  stream_ = {};
  squares_of_ = {};
  if (choice.squares)
    squares_of_ = square_stream(*op_.bytes, shape_, parts_, choice_.chunk, chunks_, plane, offsets, lowest);
  else stream_ = block_stream(*op_.bytes, shape_, parts_, choice_.chunk, chunks_, plane, offsets, lowest);
}

int64_t BlockConvStep::tasks() const {
  if (by_tile_) return std::min<int64_t>(static_cast<int64_t>(tiles_.size()), 2 * work_units());
  return static_cast<int64_t>(parts_.size()) - 1;
}

int64_t BlockConvStep::scratch_floats(int64_t) const {
  const int64_t slots = chunks_ > 1 ? whole_quads(op_.bytes->neurons()) * 4 : 4;
  return slots * choice_.rows * choice_.columns * kLanes;
}

int64_t BlockConvStep::largest_scratch() const {
  return whole_quads(op_.bytes->neurons()) * 4 * std::max<int64_t>(quads_.max_sums, cpu::kTileLine) * kLanes;
}

void BlockConvStep::run(const Call&, const Worker& worker, int64_t, int64_t, int64_t task) const {
  const int64_t parts = static_cast<int64_t>(parts_.size()) - 1;
  if (by_tile_) {
    run_range(worker, part(static_cast<int64_t>(tiles_.size()), task, tasks()), {0, parts});
  } else {
    run_range(worker, {0, static_cast<int64_t>(tiles_.size())}, {task, task + 1});
    const Store& y = stores_[y_];
    if (y.bytes) y.fill_frames(kernels_, worker.arena, parts_[task] / 4, whole_quads(parts_[task + 1]));
    else y.fill_frames(kernels_, worker.arena, parts_[task], parts_[task + 1]);
  }
}

void BlockConvStep::run_all(const Call&, const Worker& worker, int64_t, int64_t) const {
  const int64_t parts = static_cast<int64_t>(parts_.size()) - 1;
  const int64_t passes = std::clamp<int64_t>((scratch_floats(1) + kScratchFloats - 1) / kScratchFloats, 1, parts);
  for (int64_t p = 0; p < passes; ++p)
    run_range(worker, {0, static_cast<int64_t>(tiles_.size())}, part(parts, p, passes));
  stores_[y_].fill_frames(kernels_, worker.arena, 0, stores_[y_].planes());
}

void BlockConvStep::run_range(const Worker& worker, Range tiles, Range parts) const {
  const Store &x = stores_[x_], &y = stores_[y_];
  const Store* residual = residual_ < 0 ? nullptr : &stores_[residual_];
  const auto& w = op_.window;
  const int step = w.stride[1] == 2 ? 1 : 0;
  const int64_t n_parts = static_cast<int64_t>(parts_.size()) - 1, x_pitch = x.layout.pitch() * kVectorBytes;
  const int64_t x_row = w.stride[0] * x_pitch;
  cpu::QuadOut out{};
  out.sums = reinterpret_cast<int32_t*>(worker.scratch);
  out.y_row = y.layout.pitch() * kVectorBytes;
  out.y_plane = y.layout.plane() * kVectorBytes;
  out.valid_row = y.layout.blocks.columns;
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const Tile& tile = tiles_[t];
    const uint8_t* from = x.plane_bytes(worker.arena, 0) + tile.row * x_row + tile.column * w.stride[1] * kVectorBytes;
    out.y = y.plane_bytes(worker.arena, 0) + tile.row * out.y_row + tile.column * kVectorBytes;
    out.valid = y.valid.empty() ? nullptr : y.valid.data() + tile.row * out.valid_row + tile.column;
    if (residual) {
      out.residual_row = residual->layout.pitch() * kVectorBytes;
      out.residual_plane = residual->layout.plane() * kVectorBytes;
      out.residual = residual->plane_bytes(worker.arena, 0) + tile.row * out.residual_row + tile.column * kVectorBytes;
    }
    for (int64_t c = 0; c < chunks_; ++c) {
      out.first = c == 0;
      out.last = c + 1 == chunks_;
      const auto& row_at = choice_.squares ? squares_of_.row_at : stream_.row_at;
      const int64_t first = row_at[c * n_parts + parts.begin], last = row_at[c * n_parts + parts.end];
      if (choice_.squares)
        quads_.square_planes[step][tile.rows][tile.columns]({squares_of_.rows.data() + first, last - first,
                                                             squares_of_.offsets.data(), squares_of_.weights.data(),
                                                             from, x_row, &end_, out});
      else
        quads_.block_planes[step][tile.rows][tile.columns]({stream_.rows.data() + first, last - first,
                                                            stream_.offsets.data(), stream_.weights.data(), from, x_row,
                                                            &end_, out});
    }
  }
}

void BlockConvStep::set_measured(double blocks_ms, double squares_ms) {
  blocks_ms_ = blocks_ms;
  squares_ms_ = squares_ms;
}

StepReport BlockConvStep::report() const {
  StepReport r;
  const Layout& to = stores_[y_].layout;
  const auto& w = op_.window;
  char text[160];
  r.name = name();
  r.kind = "conv2d";
  r.shape = {op_.bytes->neurons(), shape_.group_channels(*op_.bytes), w.kernel[0], w.kernel[1]};
  r.kernel = choice_.squares ? "int8 dense" : "int8";
  std::snprintf(text, sizeof text, "%dx%d of %lldx%lld, %lld quads, %lldx%lld", choice_.rows, choice_.columns,
                static_cast<long long>(rows_), static_cast<long long>(columns_), static_cast<long long>(choice_.chunk),
                static_cast<long long>(to.height), static_cast<long long>(to.width));
  r.tile = text;
  const double whole = static_cast<double>(op_.bytes->neurons() * input_quads_ * shape_.taps);
  const int at = std::snprintf(text, sizeof text, "quantized: %.0f %% of the blocks of four are left",
                               100.0 * static_cast<double>(whole_blocks_) / whole);
  if (blocks_ms_ > 0 && squares_ms_ > 0)
    std::snprintf(text + at, sizeof text - static_cast<size_t>(at), "; %s measured faster",
                  choice_.squares ? "four channels at once" : "one channel at a time");
  r.why = text;
  if (!why_.empty()) r.why += "; " + why_;
  r.zeros = op_.bytes->zeros();
  r.chunk = choice_.chunk;
  r.ms = choice_.squares ? squares_ms_ : blocks_ms_;
  r.dense_ms = squares_ms_;
  r.multiply_adds =
      static_cast<double>(choice_.squares ? 4 * squares_ : blocks_) * static_cast<double>(rows_ * columns_);
  return r;
}

}  // namespace secateur::engine
