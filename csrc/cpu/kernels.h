// The kernel table: everything that one instruction set offers. Raw pointers and plain integers only.
//
// Each instruction set compiles the same algorithms (algorithms/*.h) over its own 16-lane vocabulary (vec_*.h) and
// fills one table (isa_*.cpp). dispatch.h chooses a table once, at run time.
#pragma once

#include <cstdint>

namespace secateur::cpu {

// Storage-only element types: kernels move their bits and widen them to float for arithmetic.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// Which theta belongs to an element of a row: channel = (element / inner) % channels.
template <class C>
struct ThetaView {
  const C* data;     // [channels]
  int64_t channels;  // 1 for a scalar theta
  int64_t inner;     // elements of one channel that lie side by side
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

// Statistics of one row and what they decide. Returned theta is already rounded to the type that the caller sees.
struct RowStatistics {
  double theta;
  bool finite;  // false: the row holds NaN or Inf (or overflows the sum of squares); the row was left as it is
};

template <class T>
using MaskApplyFn = void (*)(const T* w, T* y, const uint8_t* mask, int64_t rows, int64_t columns, int64_t mask_stride);
template <class T>
using StatisticsFn = RowStatistics (*)(const T* w, T* y, uint8_t* mask, int64_t columns, double k, bool is_signed);
template <class T>
using AllFiniteFn = bool (*)(const T* w, int64_t n);
template <class T, class C>
using ThresholdReluFn = void (*)(const ThresholdRelu<T, C>& row);

struct Kernels {
  const char* name;

  // y[r][i] = bit i of mask row r ? w[r][i] : +0. By element size, since only bits move; y may be w.
  MaskApplyFn<uint16_t> mask_apply_16;
  MaskApplyFn<uint32_t> mask_apply_32;
  MaskApplyFn<uint64_t> mask_apply_64;

  // One row: mean and std of |w| (or w), theta, mask, zeroed weights; y may be w.
  StatisticsFn<float> statistics_f32;
  StatisticsFn<double> statistics_f64;
  StatisticsFn<bf16> statistics_bf16;
  StatisticsFn<f16> statistics_f16;

  AllFiniteFn<float> all_finite_f32;
  AllFiniteFn<double> all_finite_f64;
  AllFiniteFn<bf16> all_finite_bf16;
  AllFiniteFn<f16> all_finite_f16;

  ThresholdReluFn<float, float> threshold_relu_f32;
  ThresholdReluFn<double, double> threshold_relu_f64;
  ThresholdReluFn<bf16, float> threshold_relu_bf16;
  ThresholdReluFn<f16, float> threshold_relu_f16;

  // Bytes (0 or not) to bits and back, one row.
  void (*mask_pack)(const uint8_t* keep, uint8_t* mask, int64_t columns);
  void (*mask_unpack)(const uint8_t* mask, uint8_t* keep, int64_t columns);
};

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif

}  // namespace secateur::cpu
