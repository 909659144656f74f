// Arguments of the engine's kernels: planes of 16-lane vectors. Raw pointers and plain integers only.
//
// A plane is one channel of one image, cut into a grid of cells, one cell a lane: lane l of vector (r, c) holds pixel
// (r, c) of cell l. A tap of a convolution moves all lanes alike, so every load is aligned. A stride is a step of whole
// vectors. A halo around the cell's vectors repeats the edge of the neighbouring cells.
//
// Offsets count "floats" or "vectors"; a vector is 16 floats on a 64-byte boundary.
#pragma once

#include <cstdint>

#include "active.h"

namespace secateur::cpu {

enum class Act : int32_t {
  kNone,
  kClamp,        // min(max(v, lo), hi); ReLU is lo = 0, hi = inf. NaN stays NaN.
  kThreshold,    // v < theta[k] ? 0 : min(v, hi). NaN stays NaN.
  kLeaky,        // v < 0 ? v * lo : v
  kHardswish,    // v * min(max(v + 3, 0), 6) / 6
  kHardsigmoid,  // min(max(v + 3, 0), 6) / 6
  kSigmoid,      // 1 / (1 + exp(-v))
  kSilu,         // v / (1 + exp(-v))
  kGelu,         // v * (1 + erf(v / sqrt(2))) / 2
  kTanh,
};

struct Activation {
  Act act = Act::kNone;
  float lo = 0, hi = 0;
  const float* theta = nullptr;  // [K], kThreshold
};

// Output of a tile: y = act(sum + bias + residual), 0 in lanes without a pixel.
struct TileOut {
  bool first, last;        // chunk of input channels: first starts from the bias, last finishes
  float* scratch;          // [slot][R * C][16]: sums between chunks; unused if first and last
  float* y;                // vector (0, 0) of the tile in output channel 0
  int64_t y_row, y_plane;  // floats from a row of the tile to the next, from a channel to the next
  const float* bias;       // [K] or null
  const float* residual;   // as y; null: none
  int64_t residual_row, residual_plane;
  Activation activation;
  const uint16_t* valid;  // bit l of [r * valid_row + c]: lane l holds a pixel there; null: all lanes do
  int64_t valid_row;
  bool fetch = false;  // y is beyond the second-level cache: prefetch the next channel's lines before its sums
};

// The nonzeros of one output channel in one chunk of input channels.
struct SparseRow {
  int32_t channel;  // output channel
  int32_t slot;     // its place in scratch
  uint32_t begin;   // nonzeros [begin, begin + count) of the stream
  uint32_t count;
  int64_t base;  // vectors, added to each offset; may be negative (the halo)
};

// Input of a later call, to be prefetched into the second-level cache. Strides in floats.
struct Ahead {
  const float* x = nullptr;  // null: nothing
  int64_t planes_a_row = 0;  // planes per row of the tile, times 2^16; rounded down: may omit a plane
  int64_t plane = 0;
  int64_t rows = 0, row = 0;
  int64_t columns = 0;  // vectors side by side
};

// Sparse weights: for each row, R x C sums in registers; for each nonzero R * C multiply-adds with memory operands.
struct SparsePlanes {
  const SparseRow* rows;
  int64_t row_count;
  const uint16_t* offsets;  // vectors from x + base
  const float* weights;
  const float* x;  // vector (0, 0) of the tile in input channel 0
  int64_t x_row;   // floats from what tile row r reads to what row r + 1 reads (stride included)
  TileOut out;
  Ahead ahead = {};
};

// Dense weights in blocks of kDenseBlock output channels: weights [blocks][channels][taps][kDenseBlock], the last block
// padded with zeros. Slot in scratch = output channel - k_begin.
struct DensePlanes {
  const float* weights;    // of the block that starts at k_begin, from this chunk's first input channel
  int64_t block_stride;    // floats from a block to the next
  int64_t k_begin, k_end;  // output channels
  int64_t channels;        // input channels in this chunk
  const int32_t* taps;     // floats from x of each tap
  int64_t tap_count;
  const float* x;  // vector (0, 0) of the tile in the chunk's first input channel
  int64_t x_row;
  int64_t x_plane;
  TileOut out;
};
inline constexpr int kDenseBlock = 4;

// One row of output vectors of one channel.
struct PoolRow {
  const float* x;
  const int32_t* taps;  // floats from x
  int64_t tap_count;
  int64_t step;  // floats from the input of output vector i to that of i + 1
  float* y;
  int64_t count;  // vectors
  bool is_max;    // NaN wins, as in torch; false: the sum, times factor or scale
  float factor;
  const float* scale;  // [count][16]; null: factor alone
  const uint16_t* valid;
};

// y = act(scale * a + shift), then (+ or *) b: rows of vectors of one channel. a, b and y may alias.
enum class Binary : int32_t { kNone, kAdd, kMultiply };
struct MapRow {
  const float* a;
  const float* b;  // null if join is kNone
  float* y;
  int64_t count;  // vectors
  float scale, shift;
  Binary join;  // joined before the activation: act(join(scale * a + shift, b))
  Activation activation;
  int64_t channel;  // index into theta
  const uint16_t* valid;
};

// One vector of the halo: lane l of `to` is lane perm.lane[l] of `from`, or `fill` if that is -1.
struct HaloCopy {
  int32_t to, from;  // vectors from the plane's vector (0, 0)
  int32_t perm;
};
struct LanePerm {
  int32_t lane[16];
};

// Linear layers with sparse weights, one input vector x [C]: y[k] = act(bias + w[k] . x).
struct SparseVector {  // rows as above, one chunk; x is read at offsets + base (floats)
  const SparseRow* rows;
  int64_t row_count;
  const uint16_t* offsets;
  const float* weights;
  const float* x;
  const float* bias;
  float* y;
  Activation activation;
  bool first, last;  // chunk of inputs: first starts from the bias, last applies the activation; y keeps sums between
};
using SparsePlanesFn = void (*)(const SparsePlanes&);
using DensePlanesFn = void (*)(const DensePlanes&);

// Largest tile: rows and columns of vectors. Which tiles exist depends on the registers (null: does not).
inline constexpr int kTileRows = 4, kTileColumns = 8, kTileLine = 24;

struct EngineKernels {
  int max_sums;  // R * C of the largest sparse tile
  // [column step - 1][R][C]; column step: input vectors from one output vector to its neighbour. With R = 1 and step 1,
  // C runs to kTileLine; otherwise to kTileColumns. A tile of C = 1 serves every column step.
  SparsePlanesFn sparse_planes[2][kTileRows + 1][kTileLine + 1];
  DensePlanesFn dense_planes[2][kTileRows + 1][kTileColumns + 1];
  void (*pool_row)(const PoolRow&);
  void (*map_row)(const MapRow&);
  void (*halo)(float* plane, const HaloCopy* copies, int64_t count, const LanePerm* perms, float fill);
  // to[i] = index[i] < 0 ? fill : from[index[i]]
  void (*gather)(float* to, const float* from, const int32_t* index, int64_t count, float fill);
  // to[16 * i + l] = lanes[l][i] for i < count; and back.
  void (*interleave)(float* to, const float* const* lanes, int64_t count);
  void (*deinterleave)(float* const* lanes, const float* from, int64_t count);
  // Sums of rows x columns vectors, for each lane.
  void (*lane_sums)(const float* x, int64_t rows, int64_t columns, int64_t row_stride, float* sums);
  void (*sparse_vector)(const SparseVector&);
  ActiveKernels active;
};

}  // namespace secateur::cpu
