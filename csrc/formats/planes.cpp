#include "planes.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace secateur {
namespace {

// Division that rounds down, so that taps left of the image land on negative positions.
int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
int64_t floor_mod(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }

// One axis: the phases that its taps read, in the order of the taps, and their shifts from the output position. Their
// number and the largest shifts are known before build(), so sizes are checked before anything large is built.
struct Axis {
  int64_t taps, stride, padding, dilation;
  int64_t phase_count, before, after;    // before, after: the furthest shifts
  std::vector<int64_t> phases;           // [phase_count]
  std::vector<int64_t> phase_of, shift;  // by tap: index into phases, positions

  Axis(int64_t n, const ConvShape& conv, int i)
      : taps(n), stride(conv.stride[i]), padding(conv.padding[i]), dilation(conv.dilation[i]) {
    phase_count = std::min(taps, stride / std::gcd(stride, dilation));
    before = std::max<int64_t>(-floor_div(-padding, stride), 0);
    after = std::max<int64_t>(floor_div((taps - 1) * dilation - padding, stride), 0);
  }
  void build() {
    std::unordered_map<int64_t, int64_t> known;
    for (int64_t r = 0; r < taps; ++r) {
      const int64_t at = r * dilation - padding, phase = floor_mod(at, stride);
      const auto [place, added] = known.try_emplace(phase, static_cast<int64_t>(phases.size()));
      if (added) phases.push_back(phase);
      phase_of.push_back(place->second);
      shift.push_back(floor_div(at, stride));
    }
  }
};

// Sizes come from the caller. Sums stay far below 2^63 while each is at most this; products may not.
constexpr int64_t kLargest = INT32_MAX;

void check_sizes(const std::string& op, const WeightShape& w, const ConvShape& conv, int64_t height, int64_t width) {
  if (height < 0 || width < 0 || height > kLargest || width > kLargest)
    throw std::runtime_error(op + ": height and width must be below 2^31, got " + std::to_string(height) + "x" +
                             std::to_string(width));
  bool good = conv.groups >= 1 && w.rows >= 1 && w.rows <= kLargest && w.columns >= 1 && w.columns <= kLargest;
  for (int i = 0; i < 2; ++i)
    good = good && conv.stride[i] >= 1 && conv.stride[i] <= kLargest && conv.dilation[i] >= 1 &&
           conv.dilation[i] <= kLargest && conv.padding[i] >= 0 && conv.padding[i] <= kLargest;
  if (!good)
    throw std::runtime_error(op + ": kernel size, stride and dilation must be 1 to 2^31 - 1, padding 0 to 2^31 - 1");
}

[[noreturn]] void refuse_size(const char* op) {
  throw std::runtime_error(std::string(op) + ": one image must have fewer than 2^31 padded values in its planes");
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

std::array<int64_t, 2> output_size(const char* op, const WeightShape& w, const ConvShape& conv, int64_t height,
                                   int64_t width) {
  check_sizes(op, w, conv, height, width);
  const int64_t reach_h = (w.rows - 1) * conv.dilation[0] + 1, reach_w = (w.columns - 1) * conv.dilation[1] + 1;
  const int64_t free_h = height + 2 * conv.padding[0] - reach_h, free_w = width + 2 * conv.padding[1] - reach_w;
  if (free_h < 0 || free_w < 0)
    throw std::runtime_error(std::string(op) + ": kernel must fit the padded image, got kernel reach " +
                             std::to_string(reach_h) + "x" + std::to_string(reach_w) + " on image " +
                             std::to_string(height) + "x" + std::to_string(width));
  const int64_t out_height = free_h / conv.stride[0] + 1, out_width = free_w / conv.stride[1] + 1;
  if (__int128{out_height} * out_width > INT32_MAX) refuse_size(op);
  return {out_height, out_width};
}

ConvPlan plan_conv(const char* op, const SparseWeight& weight, const ConvShape& conv, int64_t height, int64_t width,
                   int max_tile) {
  const WeightShape& w = weight.shape;
  const auto output = output_size(op, w, conv, height, width);
  Planes p{};
  p.height = height;
  p.width = width;
  if (__builtin_mul_overflow(w.channels, conv.groups, &p.channels)) refuse_size(op);
  p.out_height = output[0];
  p.out_width = output[1];

  // The phases that are read, and how far taps reach beyond the output position.
  Axis vertical(w.rows, conv, 0), horizontal(w.columns, conv, 1);
  const int64_t up = vertical.before, down = vertical.after, left = horizontal.before, right = horizontal.after;
  const __int128 planes = __int128{vertical.phase_count} * horizontal.phase_count * std::max<int64_t>(p.channels, 1);
  const int64_t phase_height = (height + conv.stride[0] - 1) / conv.stride[0];
  const int64_t phase_width = (width + conv.stride[1] - 1) / conv.stride[1];
  p.pitch = std::max(phase_width + left, p.out_width + right);
  p.top = up;
  const int64_t rows = up + std::max(phase_height, p.out_height + down);
  if (__int128{rows} * p.pitch > INT32_MAX || planes > INT32_MAX) refuse_size(op);
  p.plane = (rows * p.pitch + 15) / 16 * 16;
  // Planes a multiple of 4 KB apart would all fall into the same cache sets.
  if (p.plane % 1024 == 0) p.plane += 16;
  p.lead = (left + 15) / 16 * 16;
  // The last tile is whole too: it reads and computes up to a tile past the last position.
  const int64_t tile = tile_vectors(p.positions(), max_tile);
  const __int128 total = planes * p.plane + p.lead + tile * 16 + right + 16;
  if (total > INT32_MAX) refuse_size(op);
  vertical.build();
  horizontal.build();
  for (int64_t phase_a : vertical.phases)
    for (int64_t phase_b : horizontal.phases) {
      p.phase_a.push_back(phase_a);
      p.phase_b.push_back(phase_b);
    }
  p.total = p.planes() * p.plane + p.lead + tile * 16 + right + 16;

  const int64_t halo = (up + down) * p.pitch + left + right;
  const int64_t per_chunk = channels_per_chunk(p, tile, halo, w.channels);
  ConvPlan plan{p, {}, stores_of(p, tile)};
  TapStream& out = plan.stream;
  out.chunks = std::max<int64_t>((w.channels + per_chunk - 1) / per_chunk, 1);
  out.start.reserve(out.chunks * (w.neurons + 1));
  out.taps.reserve(weight.value.size());
  const int64_t area = w.rows * w.columns, neurons_per_group = w.neurons / conv.groups;
  const int64_t phases = static_cast<int64_t>(p.phase_a.size());
  std::vector<int32_t> tap_offset(weight.value.empty() ? 0 : area);
  for (int64_t i = 0; i < static_cast<int64_t>(tap_offset.size()); ++i) {
    const int64_t r = i / w.columns, s = i % w.columns;
    const int64_t plane = vertical.phase_of[r] * horizontal.phase_count + horizontal.phase_of[s];
    tap_offset[i] =
        static_cast<int32_t>(p.lead + plane * p.plane + (p.top + vertical.shift[r]) * p.pitch + horizontal.shift[s]);
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
