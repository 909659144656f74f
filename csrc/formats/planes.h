// Layout of an image for a sparse convolution: padded flat planes, so that a kernel tap is one offset.
//
// A plane is one channel of one image. Stride u x v first splits it into u * v phase planes: phase (a, b) holds the
// pixels (i * u + a, j * v + b). For a tap, output pixel (h, w) then reads plane position (h + dr, w + ds), for any
// stride. So a tap is the flat offset plane * size + dr * pitch + ds.
//
//        pitch                      pixels of row i stand at columns [0, width); what a tap may read to their left or
//   . . . . . . . .  top            right is zero. The zeros right of row i are also those left of row i + 1: the
//   x x x x x x 0 0                 columns are shared, and pitch = width + the wider of both.
//   x x x x x x 0 0  height
//   . . . . . . . .  bottom
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cpu/sparse.h"
#include "sparse_weight.h"

namespace secateur {

struct ConvShape {
  int64_t groups = 1;
  int64_t stride[2] = {1, 1};
  int64_t padding[2] = {0, 0};
  int64_t dilation[2] = {1, 1};
  bool operator==(const ConvShape&) const = default;
};

// Everything that depends on the image size. Sizes in floats.
struct Planes {
  int64_t height, width;                  // of the image
  int64_t out_height, out_width;          // OH, OW
  int64_t pitch;                          // floats from a row to the next
  int64_t top;                            // rows of zeros above the first row
  int64_t plane;                          // floats from a plane to the next
  int64_t lead;                           // floats of zeros before the first plane
  int64_t total;                          // floats of all planes of an image, slack included
  std::vector<int64_t> phase_a, phase_b;  // the phases that taps read, in plane order
  int64_t channels;                       // C
  int64_t planes() const { return channels * static_cast<int64_t>(phase_a.size()); }
  int64_t positions() const { return out_height > 0 ? (out_height - 1) * pitch + out_width : 0; }
};

// The nonzeros as the kernel reads them: chunk by chunk of input channels, neuron by neuron within a chunk.
struct TapStream {
  int64_t chunks;
  std::vector<int64_t> start;        // [chunks, K + 1] positions in taps
  std::vector<cpu::SparseTap> taps;  // [nnz]
};

// Where the finished positions of each tile are stored, without the pad columns between rows.
struct TileStores {
  int64_t tile;                // vectors of 16 positions to a tile
  std::vector<int64_t> start;  // [tiles + 1] positions in runs
  std::vector<cpu::StoreRun> runs;
  int64_t tiles() const { return static_cast<int64_t>(start.size()) - 1; }
};

struct ConvPlan {
  Planes planes;
  TapStream stream;
  TileStores stores;
};

// OH and OW, with a product below 2^31. Throws std::runtime_error (message beginning with `op`) if sizes are beyond
// 2^31 or the kernel does not fit the padded image.
std::array<int64_t, 2> output_size(const char* op, const WeightShape& weight, const ConvShape& conv, int64_t height,
                                   int64_t width);

// Throws std::runtime_error (message beginning with `op`) if the kernel is larger than the padded image, or the image
// larger than 32-bit offsets reach.
ConvPlan plan_conv(const char* op, const SparseWeight& weight, const ConvShape& conv, int64_t height, int64_t width,
                   int max_tile);

// Vectors of 16 positions in a tile: as few tiles as the registers allow, all of one size.
int64_t tile_vectors(int64_t positions, int max_tile);

}  // namespace secateur
