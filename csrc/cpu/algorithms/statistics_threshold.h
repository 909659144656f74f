// statistics_threshold in two steps, one row each. row_statistics finds theta = mean - k * std. threshold_row keeps
// |w| >= theta and zeroes the rest.
//
// Sums run in double over 16 lanes, lane = element mod 16, and are folded in one fixed order: theta has the same bits
// on every instruction set and any number of threads.
#pragma once

#include "bits.h"

namespace secateur::cpu {
namespace {

// The sum of a long row. Pieces of kPiece elements are added with their rounding errors kept (Knuth's two-sum), so the
// error does not grow with the row. torch's own cascade is as accurate; plain lanes would not be.
constexpr int64_t kPiece = 4096;

struct LongSum {
  f64x16 total = splat(0.0), lost = splat(0.0);

  void operator+=(f64x16 piece) {
    const f64x16 sum = add(total, piece), part = sub(sum, total);
    lost = add(lost, add(sub(total, sub(sum, part)), sub(piece, part)));
    total = sum;
  }

  double fold(const double* tail, int64_t count) const {
    double lane[16], rest[16];
    store(lane, total);
    store(rest, lost);
    for (int64_t i = 0; i < count; ++i) rest[i] += tail[i];
    for (int64_t half = 8; half > 0; half /= 2)
      for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half], rest[i] += rest[i + half];
    return lane[0] + rest[0];
  }
};

template <bool Signed, class V>
inline V sample_of(V w) {
  if constexpr (Signed) return w;
  else return abs_of(w);
}

// Samples as doubles, minus a constant.
template <bool Signed, class T>
inline f64x16 deviation(const T* w, f64x16 center) {
  return sub(widen(sample_of<Signed>(load(w))), center);
}

// Floats take one pass, which measures from the row's first sample, not from 0. No sample is further than sqrt(n)
// standard deviations from the mean, so the cancellation in E[d^2] - E[d]^2 is harmless where mean >> std, and a
// constant row gives exact zeros. The square of a difference of floats fits a double. Doubles take a second pass,
// around their mean.
template <class T>
constexpr bool one_pass = sizeof(T) < 8;

template <bool Signed, class T>
RowStatistics row_statistics_of(const T* w, int64_t n, double k) {
  const int64_t full = n / 16 * 16, count = n - full;
  const Tail<T> rest(w + full, count);
  Tail<T> copies;
  for (T& lane : copies.lane) lane = w[0];
  const f64x16 first = widen(sample_of<Signed>(load(copies.lane)));
  LongSum sums, spreads;  // floats: of d and d^2; doubles: of the samples and |d|, squares in the second pass
  for (int64_t i = 0; i < full;) {
    const int64_t end = i + kPiece < full ? i + kPiece : full;
    f64x16 sum = splat(0.0), spread = splat(0.0);
    for (; i < end; i += 16) {
      const f64x16 d = deviation<Signed>(w + i, first);
      sum = add(sum, one_pass<T> ? d : widen(sample_of<Signed>(load(w + i))));
      spread = add(spread, one_pass<T> ? mul(d, d) : abs_of(d));
    }
    sums += sum;
    spreads += spread;
  }
  double tail_sum[16], tail_spread[16], origin[16];
  const f64x16 tail = deviation<Signed>(rest.lane, first);
  store(tail_sum, one_pass<T> ? tail : widen(sample_of<Signed>(load(rest.lane))));
  store(tail_spread, one_pass<T> ? mul(tail, tail) : abs_of(tail));
  store(origin, first);

  const double average = sums.fold(tail_sum, count) / double(n);
  const double total_spread = spreads.fold(tail_spread, count);
  const double mean = one_pass<T> ? origin[0] + average : average;
  double variance;
  if constexpr (one_pass<T>) {
    variance = total_spread / double(n) - average * average;
  } else {
    const f64x16 center = splat(mean);
    LongSum squares;
    for (int64_t i = 0; i < full;) {
      const int64_t end = i + kPiece < full ? i + kPiece : full;
      f64x16 square = splat(0.0);
      for (; i < end; i += 16) {
        const f64x16 d = deviation<Signed>(w + i, center);
        square = add(square, mul(d, d));
      }
      squares += square;
    }
    const f64x16 d = deviation<Signed>(rest.lane, center);
    store(tail_spread, mul(d, d));
    variance = squares.fold(tail_spread, count) / double(n);
  }
  const bool constant = total_spread == 0;
  // (the sum of a constant row may round; its mean is the sample itself)
  const double theta = (constant ? origin[0] : mean) - k * (constant || variance < 0 ? 0 : __builtin_sqrt(variance));
  const bool finite = (variance - variance == 0) && (mean - mean == 0);
  return {sizeof(T) == 8 ? theta : double(float(theta)), finite, constant};
}

template <class T>
RowStatistics row_statistics(const T* w, int64_t columns, double k, bool is_signed) {
  if (columns == 0) return {0, true, true};
  return is_signed ? row_statistics_of<true>(w, columns, k) : row_statistics_of<false>(w, columns, k);
}

template <class T>
void threshold_row(const T* w, T* y, uint8_t* mask, int64_t columns, const RowStatistics& row) {
  const uint32_t all = row.constant ? 0xffff : 0;  // std 0: the neuron keeps all its weights
  const auto theta = [&] {
    if constexpr (sizeof(T) == 8) return splat(row.theta);
    else return splat(float(row.theta));
  }();
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
}

}  // namespace
}  // namespace secateur::cpu
