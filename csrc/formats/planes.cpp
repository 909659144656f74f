#include "planes.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace secateur {
namespace {

// Division that rounds down, so that taps left of the image land on negative positions.
int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
int64_t floor_mod(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }

struct Tap {
  int64_t phase, shift;
};
// Along one axis: which phase tap r reads, and how far from the output position.
Tap tap_of(int64_t r, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t at = r * dilation - padding;
  return {floor_mod(at, stride), floor_div(at, stride)};
}

// The plane of a phase within its channel; the number of phases where no tap has read it yet.
int64_t plane_of(const Planes& p, int64_t a, int64_t b) {
  size_t i = 0;
  while (i < p.phase_a.size() && (p.phase_a[i] != a || p.phase_b[i] != b)) ++i;
  return static_cast<int64_t>(i);
}

TileStores stores_of(const Planes& p, int64_t tile) {
  TileStores out{tile, {0}, {}};
  const int64_t positions = p.positions();
  for (int64_t begin = 0; begin < positions; begin += tile * 16) {
    const int64_t end = std::min(begin + tile * 16, positions);
    for (int64_t at = begin; at < end;) {
      const int64_t row = at / p.pitch, column = at % p.pitch;
      if (column >= p.out_width) {
        at = (row + 1) * p.pitch;
        continue;
      }
      const int64_t count = std::min({int64_t{16}, p.out_width - column, end - at});
      out.runs.push_back({static_cast<int32_t>(at - begin), static_cast<int32_t>(count), row * p.out_width + column});
      at += count;
    }
    out.start.push_back(static_cast<int64_t>(out.runs.size()));
  }
  return out;
}

// The bytes of planes that one tile reads should stay in a 32 KB first-level cache beside the taps and the output.
constexpr int64_t kChunkBytes = 24 << 10;

int64_t channels_per_chunk(const Planes& p, int64_t tile, int64_t halo, int64_t channels) {
  const int64_t per_plane = (tile * 16 + halo) * 4;
  const int64_t phases = static_cast<int64_t>(p.phase_a.size());
  const int64_t fit = std::max<int64_t>(kChunkBytes / (per_plane * phases), 16);
  const int64_t chunks = (channels + fit - 1) / fit;
  return chunks ? (channels + chunks - 1) / chunks : 1;
}

}  // namespace

int64_t tile_vectors(int64_t positions, int max_tile) {
  const int64_t vectors = (positions + 15) / 16;
  const int64_t tiles = (vectors + max_tile - 1) / max_tile;
  return tiles ? (vectors + tiles - 1) / tiles : 1;
}

ConvPlan plan_conv(const char* op, const SparseWeight& weight, const ConvShape& conv, int64_t height, int64_t width,
                   int max_tile) {
  const WeightShape& w = weight.shape;
  Planes p{};
  p.height = height;
  p.width = width;
  p.channels = w.channels * conv.groups;
  const int64_t reach_h = (w.rows - 1) * conv.dilation[0] + 1, reach_w = (w.columns - 1) * conv.dilation[1] + 1;
  const int64_t free_h = height + 2 * conv.padding[0] - reach_h, free_w = width + 2 * conv.padding[1] - reach_w;
  if (free_h < 0 || free_w < 0)
    throw std::runtime_error(std::string(op) + ": kernel must fit the padded image, got kernel reach " +
                             std::to_string(reach_h) + "x" + std::to_string(reach_w) + " on image " +
                             std::to_string(height) + "x" + std::to_string(width));
  p.out_height = free_h / conv.stride[0] + 1;
  p.out_width = free_w / conv.stride[1] + 1;

  // Which phases are read, and how far taps reach beyond the output position.
  int64_t up = 0, down = 0, left = 0, right = 0;
  for (int64_t r = 0; r < w.rows; ++r) {
    const Tap v = tap_of(r, conv.stride[0], conv.padding[0], conv.dilation[0]);
    up = std::max(up, -v.shift);
    down = std::max(down, v.shift);
    for (int64_t s = 0; s < w.columns; ++s) {
      const Tap h = tap_of(s, conv.stride[1], conv.padding[1], conv.dilation[1]);
      left = std::max(left, -h.shift);
      right = std::max(right, h.shift);
      if (plane_of(p, v.phase, h.phase) == static_cast<int64_t>(p.phase_a.size())) {
        p.phase_a.push_back(v.phase);
        p.phase_b.push_back(h.phase);
      }
    }
  }
  const int64_t phase_height = (height + conv.stride[0] - 1) / conv.stride[0];
  const int64_t phase_width = (width + conv.stride[1] - 1) / conv.stride[1];
  p.pitch = std::max(phase_width + left, p.out_width + right);
  p.top = up;
  const int64_t rows = up + std::max(phase_height, p.out_height + down);
  p.plane = (rows * p.pitch + 15) / 16 * 16;
  // Planes a multiple of 4 KB apart would all fall into the same cache sets.
  if (p.plane % 1024 == 0) p.plane += 16;
  p.lead = (left + 15) / 16 * 16;
  // Tiles are whole: the last one reads and computes up to a tile past the last position.
  const int64_t tile = tile_vectors(p.positions(), max_tile);
  const __int128 total = __int128{p.planes()} * p.plane + p.lead + tile * 16 + right + 16;
  if (p.plane > INT32_MAX || total > INT32_MAX)
    throw std::runtime_error(std::string(op) + ": one image must have fewer than 2^31 padded values in its planes");
  p.total = static_cast<int64_t>(total);

  const int64_t halo = (up + down) * p.pitch + left + right;
  const int64_t per_chunk = channels_per_chunk(p, tile, halo, w.channels);
  ConvPlan plan{p, {}, stores_of(p, tile)};
  TapStream& out = plan.stream;
  out.chunks = std::max<int64_t>((w.channels + per_chunk - 1) / per_chunk, 1);
  out.start.reserve(out.chunks * (w.neurons + 1));
  out.taps.reserve(weight.value.size());
  const int64_t area = w.rows * w.columns, neurons_per_group = w.neurons / conv.groups;
  const int64_t phases = static_cast<int64_t>(p.phase_a.size());
  std::vector<int32_t> tap_offset(area);
  for (int64_t i = 0; i < area; ++i) {
    const Tap v = tap_of(i / w.columns, conv.stride[0], conv.padding[0], conv.dilation[0]);
    const Tap h = tap_of(i % w.columns, conv.stride[1], conv.padding[1], conv.dilation[1]);
    const int64_t plane = plane_of(p, v.phase, h.phase);
    tap_offset[i] = static_cast<int32_t>(p.lead + plane * p.plane + (p.top + v.shift) * p.pitch + h.shift);
  }
  std::vector<int64_t> next(weight.start.begin(), weight.start.end());
  for (int64_t chunk = 0; chunk < out.chunks; ++chunk) {
    const int64_t end = std::min((chunk + 1) * per_chunk, w.channels) * area;
    for (int64_t k = 0; k < w.neurons; ++k) {
      out.start.push_back(static_cast<int64_t>(out.taps.size()));
      const int64_t first = k / std::max<int64_t>(neurons_per_group, 1) * w.channels;
      for (int64_t& i = next[k]; i < weight.start[k + 1] && weight.index[i] < end; ++i) {
        const int64_t channel = first + weight.index[i] / area;
        const int64_t offset = channel * phases * p.plane + tap_offset[weight.index[i] % area];
        out.taps.push_back({static_cast<int32_t>(offset), weight.value[i]});
      }
    }
    out.start.push_back(static_cast<int64_t>(out.taps.size()));
  }
  return plan;
}

}  // namespace secateur
