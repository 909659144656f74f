// Arguments of the int8 kernels: planes of quads. Raw pointers and plain integers only.
//
// A quad (NC4HW4) is four neighbouring channels of one pixel, a byte each, in one 32-bit lane. A vector is 16 lanes.
// Cells, halos and repacking are those of engine.h; a plane holds four channels. Channels are padded to a multiple of
// four. A byte q stands for (q - zero_point) * scale. Weights are signed bytes. A 1x4 block holds the four weights of
// one output channel for a quad at one tap.
//
// A 4x4 block holds the 4 x 4 weights of the four output channels of a quad for an input quad at one tap.
//
// Sums are 32-bit integers: the same in any order. The code that builds a layer proves that none overflows.
#pragma once

#include <cstdint>

#include "engine.h"

namespace secateur::cpu {

// The nonzero blocks of one output channel in one chunk of input quads.
struct BlockRow {
  int32_t channel;     // output channel
  int32_t slot;        // its place in sums
  uint32_t begin;      // blocks [begin, begin + count) of the stream
  uint32_t count;      // may be 0
  uint32_t paired;     // the row begins with this many pairs of blocks (int16_safe.h); 0 if the kernels use none
  int32_t weight_sum;  // of all weights in those blocks
  int64_t base;        // vectors, added to each offset; may be negative (the halo)
};

// Epilogue: q = clamp(round(sum * multiplier[k] [+ residual]) + zero_point, lo, hi); then a q below theta[k] becomes
// zero_point. Halves round to even. All per-channel arrays are padded to a multiple of four.
struct Int8Epilogue {
  const int32_t* bias;      // [K], initial value of the sums
  const float* multiplier;  // [K]
  int32_t zero_point;
  uint8_t lo, hi;
  const uint8_t* theta;       // [K] or null
  float residual_multiplier;  // multiplies the residual's (q - residual_zero_point)
  int32_t residual_zero_point;
  bool wide;  // sum * multiplier may exceed 31 bits: clamp it first
  // Float output instead: act(sum * multiplier[k]), channel by channel, as in engine.h.
  bool real;
  int64_t channels;  // K, if real: channels beyond are not stored
  Activation activation;
};

// Output of a tile. Strides in bytes.
struct Int8Out {
  bool first, last;  // chunk of input quads: first starts from the bias, last finishes
  int32_t* sums;     // [slot][R * C][16]
  uint8_t* y;        // vector (0, 0) of the tile in output quad 0 (real: channel 0)
  int64_t y_row, y_plane;
  const uint8_t* residual;  // same layout as y; null: none
  int64_t residual_row, residual_plane;
  const uint16_t* valid;  // as in TileOut; other lanes get zero_point
  int64_t valid_row;
};

// Each row has R x C sums in registers; each block takes one broadcast and R * C dot products of four bytes. The rows
// of the last chunk come in fours: the channels of a quad.
struct BlockPlanes {
  const BlockRow* rows;
  int64_t row_count;
  const uint16_t* offsets;  // vectors from x + base
  const uint32_t* weights;  // four signed bytes each, the first channel lowest
  const uint8_t* x;         // vector (0, 0) of the tile in input quad 0
  int64_t x_row;            // bytes
  const Int8Epilogue* epilogue;
  Int8Out out;
};

// The nonzero 4x4 blocks of one output quad in one chunk of input quads.
struct Block4x4Row {
  int32_t channel;         // first of its four output channels
  int32_t slot;            // its place in sums; the others follow
  uint32_t begin;          // 4x4 blocks [begin, begin + count) of the stream
  uint32_t count, paired;  // as BlockRow's
  int32_t weight_sum[4];   // per output channel
  int64_t base;            // as BlockRow's
};

// As BlockPlanes, with 4 x R x C sums in registers: for dense and depthwise weights.
struct Block4x4Planes {
  const Block4x4Row* rows;
  int64_t row_count;
  const uint16_t* offsets;  // vectors from x + base
  const uint32_t* weights;  // [4x4 block][output channel]: four signed bytes each
  const uint8_t* x;
  int64_t x_row;
  const Int8Epilogue* epilogue;
  Int8Out out;
};

// Linear layers on one input vector: sums[row] = bias + blocks . x. Offsets count quads of x.
struct BlockVector {
  const BlockRow* rows;
  int64_t row_count;
  const uint16_t* offsets;
  const uint32_t* weights;
  const uint8_t* x;
  const int32_t* bias;  // null: add to the sums
  int32_t* sums;        // by channel
};

// One row of output vectors of one quad.
struct Int8PoolRow {
  const uint8_t* x;
  const int32_t* taps;  // bytes from x
  int64_t tap_count;
  int64_t step;  // bytes from the input of output vector i to that of i + 1
  uint8_t* y;
  int64_t count;  // vectors
  bool is_max;    // false: round(sum of (q - zero_point) * factor) + y_zero_point
  float factor;
  const float* scale;  // [count][16]; null: factor alone
  int32_t zero_point, y_zero_point;
  const uint16_t* valid;
};

// One row of output vectors of one quad of a depthwise layer: byte output, no residual, not Int8Epilogue::wide.
struct Int8DepthwiseRow {
  const uint8_t* x;
  const int32_t* taps;     // bytes from x, in pairs; an odd tap count is padded with a zero-weight tap
  const int16_t* weights;  // [pair of taps][channel of the quad][tap]
  int64_t paired;
  int64_t step;  // as Int8PoolRow's
  uint8_t* y;
  int64_t count;  // vectors
  const Int8Epilogue* epilogue;
  int64_t channel;        // first channel of the quad
  const uint16_t* valid;  // other lanes get zero_point
};

// Quads <-> floats of their four channels, rows of vectors.
struct Int8Cast {
  uint8_t* quads;
  float* real[4];  // null beyond the last channel (quantizing: read as 0; dequantizing: not written)
  int64_t count;   // vectors
  float scale;     // quantizing: 1 / scale
  int32_t zero_point;
  const uint8_t* theta;   // quantizing: [4] or null
  const uint16_t* valid;  // quantizing: other lanes get zero_point
};

using BlockPlanesFn = void (*)(const BlockPlanes&);
using Block4x4PlanesFn = void (*)(const Block4x4Planes&);

struct Int8Kernels {
  const char* name;
  int max_sums;
  bool needs_int16_safe_blocks;  // adds two products in 16 bits: blocks must be int16-safe (int16_safe.h)
  BlockPlanesFn block_planes[2][kTileRows + 1][kTileLine + 1];           // as EngineKernels::sparse_planes
  Block4x4PlanesFn block4x4_planes[2][kTileRows + 1][kTileColumns + 1];  // as EngineKernels::dense_planes
  void (*block_vector)(const BlockVector&);
  void (*pool_row)(const Int8PoolRow&);
  void (*depthwise_row)(const Int8DepthwiseRow&);  // null: 4x4 blocks are faster
  void (*quantize)(const Int8Cast&);
  void (*dequantize)(const Int8Cast&);
  // Epilogue of four channels from `channel` on at 16 lanes: sums [4][16]; y is one vector, or four if real.
  void (*finish)(const int32_t* sums, const Int8Epilogue& end, int64_t channel, uint8_t* y);
  // sums[j][lane]: sum of channel j over rows x columns vectors.
  void (*lane_sums)(const uint8_t* x, int64_t rows, int64_t columns, int64_t row_stride, int32_t* sums);
};

extern const Int8Kernels int8_scalar;
#if defined(__x86_64__)
extern const Int8Kernels int8_avx2, int8_avx2_vnni, int8_avx512, int8_avx512_vnni;
#elif defined(__aarch64__)
extern const Int8Kernels int8_neon, int8_neon_dot;
#endif

}  // namespace secateur::cpu
