// Arguments of the sparse kernels. Raw pointers and plain integers only.
#pragma once

#include <cstdint>

namespace secateur::cpu {

struct SparseTap {
  int32_t offset;  // from the tile's origin, in units of the tile's scale
  float weight;
};

// A run of at most 16 finished positions that are stored in one row of the output.
struct StoreRun {
  int32_t from;   // position within the tile
  int32_t count;  // 1..16
  int64_t to;     // floats from the neuron's output plane
};

// Neurons [k_begin, k_end) over one tile of 16 * T positions, one chunk of input channels.
struct SparseTile {
  const SparseTap* taps;
  const int64_t* start;  // taps of neuron k in this chunk: [start[k], end[k])
  const int64_t* end;
  int64_t k_begin, k_end;
  const float* x;     // the tile's origin in the planes
  int64_t scale;      // floats in a unit of offset
  const float* bias;  // [K] or null
  float* partial;     // [k_end - k_begin][16 * T]: sums between chunks; unused if first and last
  bool first, last;
  const StoreRun* runs;
  int64_t run_count;
  int64_t dense_count;  // positions stored contiguously from runs[0].to on; 0: see runs
  float* y;             // output of neuron 0
  int64_t y_stride;     // floats from a neuron's output to the next
};

// Neurons [k_begin, k_end) of a linear layer for one input vector. A tap's offset is the index of its input.
struct SparseDot {
  const SparseTap* taps;
  const int64_t* start;  // taps of neuron k: [start[k], start[k + 1])
  int64_t k_begin, k_end;
  const float* x;
  const float* bias;  // [K] or null
  float* y;
};

// Vectors of 16 positions in the largest tile of any instruction set.
inline constexpr int kMaxTile = 24;

using SparseTileFn = void (*)(const SparseTile&);
using SparseDotFn = void (*)(const SparseDot&);

}  // namespace secateur::cpu
