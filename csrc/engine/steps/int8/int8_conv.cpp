#include "int8_conv.h"

#include <algorithm>
#include <cstdio>

namespace secateur::engine {

Int8ConvStep::Int8ConvStep(const std::string& name, const Int8ConvAttributes& op, const std::vector<Store>& stores,
                           int x, int y, int residual, const cpu::EngineKernels& kernels, const cpu::Int8Kernels& quads)
    : TiledConv(name, {.near_planes = 440, .scratch_floats = 256 * 1024 / 4, .candidates = 10}, op.window,
                op.bytes->neurons(), BlockShape{op.window.kernel[0] * op.window.kernel[1], op.groups}.quads(*op.bytes),
                stores, x, y, residual, kernels),
      op_(op),
      quads_(quads),
      shape_{op.window.kernel[0] * op.window.kernel[1], op.groups, quads.needs_int16_safe_blocks} {
  blocks_ = count_blocks(*op.bytes, shape_);
  whole_blocks_ = quads.needs_int16_safe_blocks ? count_blocks(*op.bytes, {shape_.taps, shape_.groups}) : blocks_;
  blocks4x4_ = can_use_4x4_blocks(*op.bytes, shape_) ? count_4x4_blocks(*op.bytes, shape_) : 0;
  epilogue_ = op.epilogue(residual < 0 ? 0 : stores[residual].zero_point);
}

// As ConvStep's, with one cache line for four channels. Only the order matters.
void Int8ConvStep::add_cycles(const ConvChoice& c, const TileCost& tile, double& cycles) const {
  const auto k = static_cast<double>(neurons_), blocks = static_cast<double>(blocks_);
  const auto [sums, footprint, far, chunks] = tile;
  cycles += 5 * k * sums + 3.1 * k * sums * (chunks - 1) + 0.25 * footprint * static_cast<double>(depth_ * op_.groups);
  if (c.dense) {
    cycles += 4 * static_cast<double>(blocks4x4_) * (sums + 0.6) * (1 + 0.05 * far) + 4 * k * chunks;
  } else {
    cycles += 1.2 * blocks * sums + 10 * k * chunks + 0.8 * blocks * sums * far;
    if (sums < 4) cycles += 0.8 * blocks * (1 - sums / 4);
  }
}

ConvChoice Int8ConvStep::likeliest() const {
  const ConvChoice blocks = candidates(false).front();
  if (!is_worth_trying(true)) return blocks;
  const ConvChoice blocks4x4 = candidates(true).front();
  return predict(blocks4x4) < predict(blocks) ? blocks4x4 : blocks;
}

bool Int8ConvStep::has_kernel(bool blocks4x4, int rows, int columns) const {
  return blocks4x4 ? quads_.block4x4_planes[step()][rows][columns] != nullptr
                   : quads_.block_planes[step()][rows][columns] != nullptr;
}

std::vector<int64_t> Int8ConvStep::chunk_sizes() const {
  std::vector<int64_t> chunks;
  for (int64_t n : {2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512}) {
    chunks.push_back(std::min(n, depth_));
    if (n >= depth_) break;
  }
  return chunks;
}

void Int8ConvStep::pack_weights() {
  const int64_t lowest = fit_chunks();
  parts_ = equal_parts(*op_.bytes, std::clamp<int64_t>(neurons_ / 8, 1, work_units()), 4);
  const Chunks chunks{choice_.chunk, chunks_, stores_[x_].layout.plane(), tap_offsets(), lowest};
  stream_ = {};
  stream4x4_ = {};
  if (choice_.dense) stream4x4_ = block4x4_stream(*op_.bytes, shape_, parts_, chunks);
  else stream_ = block_stream(*op_.bytes, shape_, parts_, chunks);
}

int64_t Int8ConvStep::scratch_floats(int64_t) const {
  const int64_t slots = chunks_ > 1 ? whole_quads(neurons_) * 4 : 4;
  return slots * choice_.rows * choice_.columns * kLanes;
}

int64_t Int8ConvStep::largest_scratch() const {
  return whole_quads(neurons_) * 4 * std::max<int64_t>(quads_.max_sums, cpu::kTileLine) * kLanes;
}

void Int8ConvStep::run_range(const Worker& worker, Range tiles, Range parts) const {
  const Store &x = stores_[x_], &y = stores_[y_];
  const Store* residual = residual_ < 0 ? nullptr : &stores_[residual_];
  const auto& w = window_;
  const int64_t x_pitch = x.layout.pitch() * kVectorBytes;
  const int64_t x_row = w.stride[0] * x_pitch;
  cpu::Int8Out out{};
  out.sums = reinterpret_cast<int32_t*>(worker.scratch);
  out.y_row = y.layout.pitch() * kVectorBytes;
  out.y_plane = y.layout.plane() * kVectorBytes;
  out.valid_row = y.layout.cells.columns;
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
      const auto& row_at = choice_.dense ? stream4x4_.row_at : stream_.row_at;
      const int64_t first = row_at[c * n_parts() + parts.begin], last = row_at[c * n_parts() + parts.end];
      if (choice_.dense)
        quads_.block4x4_planes[step()][tile.rows][tile.columns]({stream4x4_.rows.data() + first, last - first,
                                                                 stream4x4_.offsets.data(), stream4x4_.weights.data(),
                                                                 from, x_row, &epilogue_, out});
      else
        quads_.block_planes[step()][tile.rows][tile.columns]({stream_.rows.data() + first, last - first,
                                                              stream_.offsets.data(), stream_.weights.data(), from,
                                                              x_row, &epilogue_, out});
    }
  }
}

StepReport Int8ConvStep::report() const {
  StepReport r = base_report();
  char text[160];
  r.shape = {neurons_, shape_.group_channels(*op_.bytes), window_.kernel[0], window_.kernel[1]};
  r.kernel = choice_.dense ? "int8 dense" : "int8";
  const double whole = static_cast<double>(neurons_ * depth_ * shape_.taps);
  std::snprintf(text, sizeof text, "quantized: %.0f %% of the blocks of four are left",
                100.0 * static_cast<double>(whole_blocks_) / whole);
  r.why = text;
  if (!why_.empty()) r.why += "; " + why_;
  else if (sparse_ms_ > 0 && dense_ms_ > 0)
    r.why += choice_.dense ? "; four channels at once measured faster" : "; one channel at a time measured faster";
  r.zeros = op_.bytes->zeros();
  r.multiply_adds =
      static_cast<double>(choice_.dense ? 4 * blocks4x4_ : blocks_) * static_cast<double>(rows_ * columns_);
  return r;
}

}  // namespace secateur::engine
