// What the integer kernels read and write: planes of quads. Raw pointers and plain integers only.
//
// A quad is four neighbouring channels of one pixel, a byte each, in one 32-bit lane; a vector is 16 lanes, so blocks,
// halos and repacking are those of engine.h, and a plane holds four channels. Channels are filled up to a multiple of
// four. A byte q stands for (q - zero_point) * scale. Weights are signed bytes; a block is the four weights that one
// output channel has for a quad at one tap.
//
// A 4x4 block is the 4 x 4 weights that the four output channels of a quad have for an input quad at one tap.
//
// Sums are of integers, in 32 bits: they are the same in any order. Whoever builds a layer proves that none overflows.
#pragma once

#include <cstdint>

#include "engine.h"

namespace secateur::cpu {

// The blocks of one output channel, in one chunk of input quads, that are not zero.
struct BlockRow {
  int32_t channel;     // output channel
  int32_t slot;        // its place in sums
  uint32_t begin;      // blocks [begin, begin + count) of the stream
  uint32_t count;      // 0, too
  uint32_t paired;     // how many pairs of blocks the row begins with (int16_safe.h); 0 for kernels that use none
  int32_t weight_sum;  // of all weights in those blocks
  int64_t base;        // vectors, added to each of its offsets; may be negative (the halo)
};

// What becomes of finished sums: q = clamp(round(sum * multiplier[k] [+ residual]) + zero_point, lo, hi), then what
// lies below theta[k] becomes zero_point. Int16SafeParts round to even. All per-channel arrays are filled up to a
// multiple of four.
struct Int8Epilogue {
  const int32_t* bias;      // [K], what sums begin with
  const float* multiplier;  // [K]
  int32_t zero_point;
  uint8_t lo, hi;
  const uint8_t* theta;       // [K] or null
  float residual_multiplier;  // of the residual's (q - residual_zero_point)
  int32_t residual_zero_point;
  bool wide;  // sum * multiplier may leave 31 bits: clamp it first
  // Real values instead: act(sum * multiplier[k]), channel by channel as engine.h has them.
  bool real;
  int64_t channels;  // K, where real: those beyond are not stored
  Activation activation;
};

// Where they go. Strides in bytes.
struct Int8Out {
  bool first, last;  // chunk of input quads: first starts from the bias, last finishes
  int32_t* sums;     // [slot][R * C][16]
  uint8_t* y;        // vector (0, 0) of the tile in output quad 0 (real: channel 0)
  int64_t y_row, y_plane;
  const uint8_t* residual;  // as y; null: none
  int64_t residual_row, residual_plane;
  const uint16_t* valid;  // as in TileOut; other lanes get zero_point
  int64_t valid_row;
};

// For each row R x C sums in registers; for each block one broadcast and R * C dot products of four bytes. The rows of
// the last chunk come in fours, the channels of a quad.
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

// The 4x4 blocks of one output quad, in one chunk of input quads, that are not zero.
struct Block4x4Row {
  int32_t channel;         // the first of its four output channels
  int32_t slot;            // its place in sums; the others follow
  uint32_t begin;          // 4x4 blocks [begin, begin + count) of the stream
  uint32_t count, paired;  // as BlockRow's
  int32_t weight_sum[4];   // of each output channel's weights in them
  int64_t base;            // as BlockRow's
};

// As BlockPlanes, with 4 x R x C sums in registers: for dense weights, and depthwise ones.
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
  int64_t step;  // bytes from what output vector i reads to what i + 1 reads
  uint8_t* y;
  int64_t count;  // vectors
  bool is_max;    // otherwise round(sum of (q - zero_point) * factor) + y_zero_point
  float factor;
  const float* scale;  // [count][16], null: factor alone
  int32_t zero_point, y_zero_point;
  const uint16_t* valid;
};

// One row of output vectors of one quad of a depthwise layer: bytes, without a residual, not Int8Epilogue::wide.
struct Int8DepthwiseRow {
  const uint8_t* x;
  const int32_t* taps;     // bytes from x, in pairs; an odd last one is paired with any, with weights of zero
  const int16_t* weights;  // [two of taps][channel of the quad][tap]
  int64_t paired;
  int64_t step;  // as Int8PoolRow's
  uint8_t* y;
  int64_t count;  // vectors
  const Int8Epilogue* epilogue;
  int64_t channel;        // the first of the quad
  const uint16_t* valid;  // other lanes get zero_point
};

// Bytes of a quad <-> the real values of its four channels, rows of vectors.
struct Int8Cast {
  uint8_t* quads;
  float* real[4];  // null (quantizing: taken for 0; the other way: not written) beyond the last channel
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
  bool needs_int16_safe_blocks;  // two products are added in 16 bits: blocks must be int16-safe (int16_safe.h)
  BlockPlanesFn block_planes[2][kTileRows + 1][kTileLine + 1];           // as EngineKernels::sparse_planes
  Block4x4PlanesFn block4x4_planes[2][kTileRows + 1][kTileColumns + 1];  // as EngineKernels::dense_planes
  void (*block_vector)(const BlockVector&);
  void (*pool_row)(const Int8PoolRow&);
  void (*depthwise_row)(const Int8DepthwiseRow&);  // null: 4x4 blocks take less
  void (*quantize)(const Int8Cast&);
  void (*dequantize)(const Int8Cast&);
  // Finishes sums that lie [4][16], four channels from `channel` on, at 16 lanes: y is a vector, or (real) four.
  void (*finish)(const int32_t* sums, const Int8Epilogue& end, int64_t channel, uint8_t* y);
  // sums[j][lane]: of channel j over rows x columns vectors.
  void (*lane_sums)(const uint8_t* x, int64_t rows, int64_t columns, int64_t row_stride, int32_t* sums);
};

extern const Int8Kernels int8_scalar;
#if defined(__x86_64__)
extern const Int8Kernels int8_avx2, int8_avx2_vnni, int8_avx512, int8_avx512_vnni;
#elif defined(__aarch64__)
extern const Int8Kernels int8_neon, int8_neon_dot;
#endif

}  // namespace secateur::cpu
