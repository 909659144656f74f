// The kernel table: everything that one instruction set offers. Raw pointers and plain integers only.
//
// Each instruction set compiles the same algorithms (algorithms/*.h) over its own 16-lane vocabulary (vec_*.h) and
// fills one table (isa_*.cpp). dispatch.h chooses a table once, at run time.
#pragma once

#include <cstdint>

#include "engine.h"
#include "sparse.h"

namespace secateur::cpu {

// Storage-only element types: kernels move their bits, and widen them to float for arithmetic.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// The theta of an element of a row: channel = (element / inner) % channels.
template <class C>
struct ThetaView {
  const C* data;     // [channels]
  int64_t channels;  // 1 for a scalar theta
  int64_t inner;     // contiguous elements of one channel
};

template <class T, class C>
struct ThresholdRelu {
  const T* x;
  T* y;           // may be x
  uint8_t* mask;  // bits of this row
  int64_t begin;  // first element, a multiple of 16
  int64_t end;
  ThetaView<C> theta;
  bool has_max;
  C max;
  T max_stored;  // `max` in the element type: what a clamped element becomes
};

// Statistics of one row and its theta, already rounded to the type that the caller sees.
struct RowStatistics {
  double theta;
  bool finite;    // false: the row holds NaN or Inf (or overflows the sum of squares)
  bool constant;  // std is 0: every weight is kept, whatever the rounding of theta
};

template <class T>
using MaskApplyFn = void (*)(const T* w, T* y, const uint8_t* mask, int64_t rows, int64_t columns, int64_t mask_stride);
template <class T>
using RowStatisticsFn = RowStatistics (*)(const T* w, int64_t columns, double k, bool is_signed);
template <class T>
using ThresholdRowFn = void (*)(const T* w, T* y, uint8_t* mask, int64_t columns, const RowStatistics& row);
template <class T, class C>
using ThresholdReluFn = void (*)(const ThresholdRelu<T, C>& row);

struct Kernels {
  const char* name;

  // y[r][i] = bit i of mask row r ? w[r][i] : +0. By element size, since only bits move. y may be w.
  MaskApplyFn<uint16_t> mask_apply_16;
  MaskApplyFn<uint32_t> mask_apply_32;
  MaskApplyFn<uint64_t> mask_apply_64;

  // statistics_threshold, one row: mean and std of |w| (or w) and theta; then mask and zeroed weights; y may be w.
  RowStatisticsFn<float> row_statistics_f32;
  RowStatisticsFn<double> row_statistics_f64;
  RowStatisticsFn<bf16> row_statistics_bf16;
  RowStatisticsFn<f16> row_statistics_f16;
  ThresholdRowFn<float> threshold_row_f32;
  ThresholdRowFn<double> threshold_row_f64;
  ThresholdRowFn<bf16> threshold_row_bf16;
  ThresholdRowFn<f16> threshold_row_f16;

  ThresholdReluFn<float, float> threshold_relu_f32;
  ThresholdReluFn<double, double> threshold_relu_f64;
  ThresholdReluFn<bf16, float> threshold_relu_bf16;
  ThresholdReluFn<f16, float> threshold_relu_f16;

  // Bytes (0 or not) to bits and back, one row.
  void (*mask_pack)(const uint8_t* keep, uint8_t* mask, int64_t columns);
  void (*mask_unpack)(const uint8_t* mask, uint8_t* keep, int64_t columns);

  // Sparse layers: sparse_tile[T] for tiles of T vectors, 1 <= T <= max_tile; and one input vector of a linear layer.
  int max_tile;
  SparseTileFn sparse_tile[kMaxTile + 1];
  SparseDotFn sparse_dot;

  // Kernels of the engine: planes of 16-lane vectors.
  EngineKernels engine;
};

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif

}  // namespace secateur::cpu
