// statistics_threshold against sums in long double: theta, mask and weights, bad rows, and the same bits for any grid.
#include <limits>

#include "cases.h"

namespace checks {
namespace {

template <class T>
void statistics_of() {
  using C = compare_t<T>;
  everywhere(
      [](Shape shape, int64_t offset) {
        const int64_t n = shape.rows * shape.columns, columns = shape.columns;
        if (n == 0) return;
        const View view = view_of(shape.rows, columns);
        int run = 0;
        for (double k : {0.7, -0.5})
          for (bool is_signed : {false, true}) {
            const bool in_place = (++run + shape.columns + offset) % 2;
            if (n > 100000 && run > 1) continue;
            Random random(n * 31 + run);
            Buffer<T> w(n, offset), y(n, (offset + 1) % 4);
            Buffer<uint8_t> mask(view.groups, offset);
            Buffer<C> theta(shape.rows, offset);
            Buffer<int64_t> bad(1);
            fill(w, random);
            const int64_t constant = shape.rows / 2;  // a row whose std is 0
            if (shape.rows > 2)
              for (int64_t c = 1; c < columns; ++c) w[constant * columns + c] = w[constant * columns];
            const std::vector<T> before(w.data(), w.data() + n);
            const StatisticsCall call{
                element<T>(), w.data(), in_place ? w.data() : y.data(), mask.data(), theta.data(), bad.data(), view, k,
                is_signed};
            reset_row(bad.data(), kQueue);
            if (in_place) {
              that(!statistics_threshold(call, Pass::kDecide, kQueue), "launch");
              for (int64_t i = 0; i < n; ++i) that(same_bits(w[i], before[i]), "the deciding pass wrote weight %ld", i);
              that(!statistics_threshold(call, Pass::kApply, kQueue), "launch");
            } else {
              that(!statistics_threshold(call, Pass::kFused, kQueue), "launch");
            }
            int64_t row = 0;
            read_row(bad.data(), &row, kQueue);
            that(row == kNoRow, "row %ld is called bad", row);
            const T* out = in_place ? w.data() : y.data();
            std::vector<bool> want(n);
            for (int64_t r = 0; r < shape.rows; ++r) {
              long double sum = 0, square = 0;
              bool same = true;
              auto sample = [&](int64_t c) {
                const double v = number(before[r * columns + c]);
                return is_signed ? v : std::fabs(v);
              };
              for (int64_t c = 0; c < columns; ++c) sum += sample(c), same = same && sample(c) == sample(0);
              const long double mean = sum / columns;
              for (int64_t c = 0; c < columns; ++c) square += (sample(c) - mean) * (sample(c) - mean);
              const double expect = static_cast<double>(mean - k * std::sqrt(square / columns));
              // float theta is rounded once (2^-24 of at most 2); double sums are n * 2^-53 apart at most.
              const double slack = sizeof(C) == 4 ? 2e-7 : 1e-9;
              that(std::fabs(theta[r] - expect) <= slack, "theta %.17g, want %.17g, row %ld of [%ld, %ld]",
                   double(theta[r]), expect, r, shape.rows, columns);
              for (int64_t c = 0; c < columns; ++c) {
                const int64_t i = r * columns + c;
                want[i] = same || std::fabs(number(before[i])) >= double(theta[r]);
                that(same_bits(out[i], want[i] ? before[i] : T{}), "weight [%ld, %ld] of [%ld, %ld]", r, c, shape.rows,
                     columns);
              }
            }
            check_mask_is(mask.data(), view, want, "statistics_threshold");
          }
      },
      true);
}

// The same bits for any grid and any order of threads: a wait that is missing, or a sum whose order hangs on the
// schedule, shows here.
void deterministic() {
  for (int64_t columns : {5, 700, 5000}) {
    const int64_t rows = 40;
    Random random(columns);
    Buffer<float> w(rows * columns);
    fill(w, random);
    const View view = view_of(rows, columns);
    std::vector<float> first, now;
    for (Order order : kOrders)
      for (int64_t blocks : {1, 2, 100}) {
        grid() = {blocks, order, 0};
        Buffer<float> y(rows * columns), theta(rows);
        Buffer<uint8_t> mask(view.groups);
        Buffer<int64_t> bad(1);
        reset_row(bad.data(), kQueue);
        statistics_threshold(
            {Element::kF32, w.data(), y.data(), mask.data(), theta.data(), bad.data(), view, 0.5, false}, Pass::kFused,
            kQueue);
        now.assign(theta.data(), theta.data() + rows);
        now.insert(now.end(), y.data(), y.data() + rows * columns);
        now.insert(now.end(), mask.data(), mask.data() + view.groups);
        if (first.empty()) first = now;
        that(now == first, "results depend on the grid (%ld blocks) or the order", blocks);
      }
  }
}

// Rows whose theta is exactly a weight: 1 3 1 3 has mean 2 and std 1, and what equals theta stays.
template <class T>
void at_the_threshold_of(T one, T three) {
  for (int64_t columns : {2, 48, 4096})
    for (double k : {1.0, -1.0}) {
      Buffer<T> w(columns), y(columns);
      for (int64_t c = 0; c < columns; ++c) w[c] = c % 2 ? three : one;
      const View view = view_of(1, columns);
      Buffer<uint8_t> mask(view.groups);
      Buffer<compare_t<T>> theta(1);
      Buffer<int64_t> bad(1);
      reset_row(bad.data(), kQueue);
      statistics_threshold({element<T>(), w.data(), y.data(), mask.data(), theta.data(), bad.data(), view, k, false},
                           Pass::kFused, kQueue);
      that(theta[0] == (k > 0 ? 1 : 3), "theta of 1 3 1 3 is %g at k = %g", double(theta[0]), k);
      for (int64_t c = 0; c < columns; ++c)
        that(bit(mask.data(), c) == (k > 0 || c % 2), "weight %ld of 1 3 1 3 at k = %g", c, k);
    }
}

// The first bad row is found, whatever made it bad, and no other weight is lost by looking.
template <class T>
void bad_rows_of() {
  for (int64_t columns : {1, 9, 2100})
    for (int64_t where : {int64_t{0}, columns / 2, columns - 1})
      for (int kind = 0; kind < 3; ++kind) {
        const int64_t rows = 11;
        Random random(columns);
        Buffer<T> w(rows * columns), y(rows * columns);
        fill(w, random);
        T poison;
        if constexpr (sizeof(T) >= 4) {
          poison = kind == 0 ? std::numeric_limits<T>::quiet_NaN()
                             : std::numeric_limits<T>::infinity() * (kind == 1 ? 1 : -1);
        } else if constexpr (std::is_same_v<T, bf16>) {
          poison.bits = static_cast<uint16_t>(kind == 0 ? 0x7fc0 : kind == 1 ? 0x7f80 : 0xff80);
        } else {
          poison.bits = static_cast<uint16_t>(kind == 0 ? 0x7e00 : kind == 1 ? 0x7c00 : 0xfc00);
        }
        w[7 * columns + where] = w[4 * columns + where] = poison;
        const View view = view_of(rows, columns);
        for (Pass pass : {Pass::kDecide, Pass::kFused}) {
          Buffer<uint8_t> mask(view.groups);
          Buffer<compare_t<T>> theta(rows);
          Buffer<int64_t> bad(1);
          reset_row(bad.data(), kQueue);
          statistics_threshold(
              {element<T>(), w.data(), y.data(), mask.data(), theta.data(), bad.data(), view, 1.0, false}, pass,
              kQueue);
          that(bad[0] == 4, "bad row 4, got %ld (columns %ld, at %ld, kind %d)", bad[0], columns, where, kind);
        }
      }
}

}  // namespace

void statistics_threshold_group() {
  statistics_of<float>();
  statistics_of<double>();
  statistics_of<bf16>();
  statistics_of<f16>();
}
void at_the_threshold_group() {
  at_the_threshold_of<float>(1, 3);
  at_the_threshold_of<double>(1, 3);
  at_the_threshold_of<bf16>({0x3f80}, {0x4040});
  at_the_threshold_of<f16>({0x3c00}, {0x4200});
}
void bad_rows_group() {
  bad_rows_of<float>();
  bad_rows_of<double>();
  bad_rows_of<bf16>();
  bad_rows_of<f16>();
}
void deterministic_group() { deterministic(); }

}  // namespace checks
