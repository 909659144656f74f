#include <algorithm>
#include <cmath>

#include "cpu/dispatch.h"
#include "testing.h"

namespace secateur::test {
namespace {

struct Expected {
  double theta;
  double tolerance;
};

template <class T>
Expected expected(const std::vector<T>& w, double k, bool is_signed) {
  const auto sample = [&](T x) -> long double { return is_signed ? value(x) : std::fabs(value(x)); };
  long double sum = 0, squares = 0;
  for (T x : w) sum += sample(x);
  const long double mean = sum / w.size();
  for (T x : w) squares += (sample(x) - mean) * (sample(x) - mean);
  const long double std = std::sqrt(squares / w.size());
  // float32 theta: half a unit in the last place of its two parts. float64: the kernel's sums are of differences from
  // the first sample, so n roundings of the largest of them.
  const double parts = static_cast<double>(std::fabs(mean) + std::fabs(k) * std);
  double largest = 0;
  for (T x : w) largest = std::max(largest, std::fabs(value(x)));
  const double tolerance = sizeof(T) == 8 ? 1e-15 * (8 + double(w.size())) * (parts + largest) : 6.1e-8 * parts;
  return {static_cast<double>(mean - k * std), tolerance};
}

template <class T>
struct Pair {
  cpu::RowStatisticsFn<T> row_statistics;
  cpu::ThresholdRowFn<T> threshold_row;
};

template <class T>
void test_threshold_row(const Pair<T>& kernels, const std::vector<T>& w, const cpu::RowStatistics& row) {
  const int64_t n = static_cast<int64_t>(w.size());
  const Buffer<T> from(w), to(n), in_place(w);
  const Buffer<uint8_t> mask(bytes_of(n)), mask_in_place(bytes_of(n));
  kernels.threshold_row(from.data(), to.data(), mask.data(), n, row);
  kernels.threshold_row(in_place.data(), in_place.data(), mask_in_place.data(), n, row);
  for (int64_t i = 0; i < n; ++i) {
    const bool keep = row.constant || std::fabs(value(w[i])) >= row.theta;
    const T want = keep ? w[i] : element<T>(0.0);
    check(same_bits(to[i], want) && same_bits(in_place[i], want), "threshold_row ", type_name<T>(), ": n ", n,
          ", theta ", row.theta, ", element ", i, " = ", value(w[i]));
    check(bit(mask.data(), i) == keep && bit(mask_in_place.data(), i) == keep, "threshold_row ", type_name<T>(),
          ": mask, n ", n, ", element ", i);
  }
  for (int64_t i = n; i < 8 * bytes_of(n); ++i) check(!bit(mask.data(), i), "threshold_row: unused bit ", i, " is set");
}

template <class T>
void test_row(const Pair<T>& kernels, const Pair<T>& scalar, const std::vector<T>& w) {
  const int64_t n = static_cast<int64_t>(w.size());
  const Buffer<T> from(w);
  for (double k : {-1.0, 0.0, 1.3})
    for (bool is_signed : {false, true}) {
      const cpu::RowStatistics row = kernels.row_statistics(from.data(), n, k, is_signed);
      const cpu::RowStatistics same = scalar.row_statistics(from.data(), n, k, is_signed);
      check(row.finite, "row_statistics ", type_name<T>(), ": finite weights called non-finite, n ", n);
      check(same_bits(row.theta, same.theta), "row_statistics ", type_name<T>(), ": theta ", row.theta,
            " is not scalar's ", same.theta, ", n ", n);
      if (n > 0 && !row.constant) {
        const Expected want = expected(w, k, is_signed);
        check(std::fabs(row.theta - want.theta) <= want.tolerance, "row_statistics ", type_name<T>(), ": theta ",
              row.theta, ", expected ", want.theta, ", n ", n, ", k ", k);
      }
      test_threshold_row(kernels, w, row);
    }
}

template <class T>
void test_type(const Pair<T>& kernels, const Pair<T>& scalar) {
  Random random(3);
  for (int64_t n : sizes()) {
    test_row(kernels, scalar, inputs<T>(random, n, false));
    if (n == 0) continue;

    // A row of one value has std 0, keeps everything; one that differs in its last element alone does not.
    std::vector<T> row(n, element<T>(0.7));
    test_row(kernels, scalar, row);
    check(kernels.row_statistics(Buffer<T>(row).data(), n, 0.5, false).constant, "constant row of ", n, " not seen");
    if (n > 1) {
      row.back() = element<T>(0.1);
      check(!kernels.row_statistics(Buffer<T>(row).data(), n, 0.5, false).constant, "row of ", n, " called constant");
    }

    // One NaN or Inf, at any position of a vector and of the tail, is seen.
    for (int64_t at : {int64_t{0}, n / 2, n - 1})
      for (double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        std::vector<T> w = inputs<T>(random, n, false);
        w[at] = element<T>(bad);
        for (bool is_signed : {false, true})
          check(!kernels.row_statistics(Buffer<T>(w).data(), n, 0.0, is_signed).finite, "row_statistics ",
                type_name<T>(), ": ", bad, " at ", at, " of ", n, " not seen");
      }

    // What is NaN or Inf all the same follows the comparison: NaN >= theta is false.
    test_threshold_row(kernels, inputs<T>(random, n, true), {0.5, true, false});
  }
}

template <class T>
Pair<T> of(const Kernels& k);
template <>
Pair<float> of(const Kernels& k) {
  return {k.row_statistics_f32, k.threshold_row_f32};
}
template <>
Pair<double> of(const Kernels& k) {
  return {k.row_statistics_f64, k.threshold_row_f64};
}
template <>
Pair<bf16> of(const Kernels& k) {
  return {k.row_statistics_bf16, k.threshold_row_bf16};
}
template <>
Pair<f16> of(const Kernels& k) {
  return {k.row_statistics_f16, k.threshold_row_f16};
}

}  // namespace

void test_statistics_threshold(const Kernels& kernels) {
  const Kernels& scalar = cpu::kernels_scalar;
  test_type(of<float>(kernels), of<float>(scalar));
  test_type(of<double>(kernels), of<double>(scalar));
  test_type(of<bf16>(kernels), of<bf16>(scalar));
  test_type(of<f16>(kernels), of<f16>(scalar));
}

}  // namespace secateur::test
