// The launchers: what the CUDA side offers to its fronts (ops/*.cpp). Raw pointers and plain integers only; no torch
// and no CUDA header, so that the fronts need no nvcc and tests/cuda/shim can put an emulated grid behind the same
// names.
//
// All pointers are of the device, all launches go into the given queue, and nothing waits except read_row.
#pragma once

#include <cstdint>

namespace secateur::cuda {

// Storage-only element types: kernels move their bits and widen them to float for arithmetic.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};
enum class Element : int { kF32, kF64, kBF16, kF16 };

struct Queue {
  int device;
  void* stream;  // cudaStream_t
};

// What went wrong, in CUDA's words; null where the kernel was launched (or had nothing to do).
using Failure = const char*;

// Rows as they are packed: each row's bits start on a byte.
struct View {
  int64_t rows;
  int64_t columns;
  int64_t bytes;   // of mask a row
  int64_t groups;  // bytes of mask in all: a group is what one byte stands for, up to 8 elements of one row
};
inline View view_of(int64_t rows, int64_t columns) {
  const int64_t bytes = columns / 8 + (columns % 8 != 0);
  return {rows, columns, bytes, rows * bytes};
}
// For kernels that treat every element alike: rows of whole bytes are one long row, which saves a division a group.
inline View flat_view(int64_t rows, int64_t columns) {
  return columns % 8 == 0 ? view_of(1, rows * columns) : view_of(rows, columns);
}

// y[i] = bit i ? w[i] : +0. By element size, since only bits move; y may be w.
Failure mask_apply(int64_t element_size, const void* w, void* y, const uint8_t* mask, const View& view, Queue queue);

// The same in place for many weights of one element size, in one launch for each 84 of them.
struct MaskedRows {
  void* w;
  const uint8_t* mask;  // in logical order: rows on bytes
  int64_t rows, columns;
  int64_t channels;  // of memory that lies [row][columns / channels][channels] (channels_last); 0: in logical order
};
Failure mask_apply_many(int64_t element_size, const MaskedRows* weights, int64_t count, Queue queue);

// Bytes (0 or not) to bits and back.
Failure mask_pack(const uint8_t* keep, uint8_t* mask, const View& view, Queue queue);
Failure mask_unpack(const uint8_t* mask, uint8_t* keep, const View& view, Queue queue);

// Bits of [rows, a, b] -> bits of [rows, b, a]: how a mask in logical order meets channels_last memory, and back.
Failure transpose_bits(const uint8_t* from, uint8_t* to, int64_t rows, int64_t a, int64_t b, Queue queue);

struct ThresholdReluCall {
  Element element;
  const void* x;
  void* y;  // may be x
  uint8_t* mask;
  View view;
  const void* theta;  // [channels], float (double for double x)
  int64_t channels;   // 1 for a scalar theta; channel of an element = (element / inner) % channels
  int64_t inner;      // elements of one channel that lie side by side, >= 1
  bool has_max;
  double max;
  uint64_t max_stored;  // the bits of `max` in the element type: what a clamped element becomes
};
Failure threshold_relu(const ThresholdReluCall& call, Queue queue);

enum class Pass : int {
  kDecide,  // theta, bad; weights untouched
  kApply,   // mask and y from theta
  kFused,   // both at once; y must not be w: a bad row is found too late
};
struct StatisticsCall {
  Element element;
  const void* w;
  void* y;  // may be w
  uint8_t* mask;
  void* theta;   // [rows], float (double for double w)
  int64_t* bad;  // the first row that is not finite; set to kNoRow by reset_row before
  View view;
  double k;
  bool is_signed;
};
Failure statistics_threshold(const StatisticsCall& call, Pass pass, Queue queue);

// A byte pattern, so that a memset can write it; no tensor has as many rows.
inline constexpr int64_t kNoRow = 0x7f7f7f7f7f7f7f7f;
Failure reset_row(int64_t* row, Queue queue);
Failure read_row(const int64_t* row, int64_t* host, Queue queue);  // waits for the queue

}  // namespace secateur::cuda
