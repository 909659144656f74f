// statistics_threshold, one row: theta = mean - k * std, keep |w| >= theta, zero the rest.
//
// The row is read from memory by the first pass; later passes find it in cache (a row that does not fit is read again).
// Sums run in double over 16 lanes, lane = element mod 16, folded in one fixed order: every instruction set and any
// number of threads give the same theta to the bit.
#pragma once

#include "bits.h"

namespace secateur::cpu {
namespace {

inline double fold(const f64x16& sums, const double* tail, int64_t count) {
  double lane[16];
  store(lane, sums);
  for (int64_t i = 0; i < count; ++i) lane[i] += tail[i];
  for (int64_t half = 8; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

template <bool Signed, class V>
inline V sample_of(V w) {
  if constexpr (Signed) return w;
  else return abs_of(w);
}

// Widest exact type in which the squares of T add up: the square of a float is exact in double, so one pass suffices
// and cancellation costs at most 2^-53 * mean^2; doubles take a second pass over their deviations.
template <class T>
constexpr bool squares_exact = sizeof(T) < 8;

template <bool Signed, class T>
RowStatistics row_statistics(const T* w, int64_t n, double k, bool* constant) {
  const int64_t full = n / 16 * 16, count = n - full;
  const Tail<T> rest(w + full, count);
  Tail<T> copies;
  for (T& lane : copies.lane) lane = w[0];
  const auto first = sample_of<Signed>(load(copies.lane));
  f64x16 sum = splat(0.0), square = splat(0.0);
  uint32_t differs = 0;
  for (int64_t i = 0; i < full; i += 16) {
    auto v = sample_of<Signed>(load(w + i));
    f64x16 d = widen(v);
    sum = add(sum, d);
    if constexpr (squares_exact<T>) square = add(square, mul(d, d));
    differs |= less(v, first) | less(first, v);
  }
  double tail_sample[16], tail_square[16];
  f64x16 tail = widen(sample_of<Signed>(load(rest.lane)));
  store(tail_sample, tail);
  store(tail_square, mul(tail, tail));
  double head[16];
  store(head, widen(first));
  for (int64_t i = 0; i < count; ++i) differs |= tail_sample[i] != head[0];

  const double mean = fold(sum, tail_sample, count) / double(n);
  double variance;
  if constexpr (squares_exact<T>) {
    variance = fold(square, tail_square, count) / double(n) - mean * mean;
  } else {
    const f64x16 center = splat(mean);
    for (int64_t i = 0; i < full; i += 16) {
      f64x16 d = sub(widen(sample_of<Signed>(load(w + i))), center);
      square = add(square, mul(d, d));
    }
    f64x16 d = sub(tail, center);
    store(tail_square, mul(d, d));
    variance = fold(square, tail_square, count) / double(n);
  }
  *constant = !differs;
  const double theta = mean - k * __builtin_sqrt(variance > 0 ? variance : 0);
  const bool finite = (variance - variance == 0) && (mean - mean == 0);
  return {sizeof(T) == 8 ? theta : double(float(theta)), finite};
}

template <class T>
inline auto splat_theta(double theta) {
  if constexpr (sizeof(T) == 8) return splat(theta);
  else return splat(float(theta));
}

template <class T>
RowStatistics statistics_threshold(const T* w, T* y, uint8_t* mask, int64_t columns, double k, bool is_signed) {
  if (columns == 0) return {0, true};
  bool constant = false;
  RowStatistics row =
      is_signed ? row_statistics<true>(w, columns, k, &constant) : row_statistics<false>(w, columns, k, &constant);
  if (!row.finite) return row;
  const uint32_t all = constant ? 0xffff : 0;  // std 0: the neuron keeps all its weights
  const auto theta = splat_theta<T>(row.theta);
  int64_t i = 0;
  for (; i + 16 <= columns; i += 16) {
    uint32_t bits = less_equal(theta, abs_of(load(w + i))) | all;
    store_bits(mask, i, bits);
    store_raw(y + i, keep(load_raw(w + i), bits));
  }
  if (int64_t count = columns - i; count > 0) {
    Tail<T> tail(w + i, count);
    uint32_t bits = less_equal(theta, abs_of(load(tail.lane))) | all;
    store_tail_bits(mask, i, count, bits);
    store_raw(tail.lane, keep(load_raw(tail.lane), bits));
    tail.store(y + i, count);
  }
  return row;
}

// False for NaN and Inf: |w| <= largest finite value.
template <class T>
bool all_finite(const T* w, int64_t n) {
  const auto largest = splat_theta<T>(sizeof(T) == 8 ? __DBL_MAX__ : double(__FLT_MAX__));
  uint32_t good = 0xffff;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) good &= less_equal(abs_of(load(w + i)), largest);
  if (int64_t count = n - i; count > 0) {
    Tail<T> tail(w + i, count);
    good &= less_equal(abs_of(load(tail.lane)), largest);
  }
  return good == 0xffff;
}

}  // namespace
}  // namespace secateur::cpu
