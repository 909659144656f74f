// mask_apply, the packing of bits and their transpose, threshold_relu, and what all bodies share, against plain loops.
#include <limits>

#include "cases.h"

namespace checks {
namespace {

template <class T>
void mask_apply_of() {
  everywhere([](Shape shape, int64_t offset) {
    Random random(shape.rows * 7919 + shape.columns);
    const View view = view_of(shape.rows, shape.columns);
    const int64_t n = shape.rows * shape.columns;
    for (bool in_place : {false, true}) {
      Buffer<T> w(n, offset), y(n, (offset + 1) % 4);
      Buffer<uint8_t> mask(view.groups, offset);
      for (int64_t i = 0; i < n; ++i) w[i] = static_cast<T>(random.bits());  // any bits: Inf and NaN are only moved
      for (int64_t i = 0; i < view.groups; ++i) mask[i] = static_cast<uint8_t>(random.bits());
      std::vector<T> before(w.data(), w.data() + n);
      T* out = in_place ? w.data() : y.data();
      that(!mask_apply(sizeof(T), w.data(), out, mask.data(), flat_view(shape.rows, shape.columns), kQueue), "launch");
      for (int64_t r = 0; r < shape.rows; ++r)
        for (int64_t c = 0; c < shape.columns; ++c) {
          const int64_t i = r * shape.columns + c;
          that(same_bits(out[i], bit(mask.data() + r * view.bytes, c) ? before[i] : T{}),
               "mask_apply: [%ld, %ld] of [%ld, %ld]", r, c, shape.rows, shape.columns);
        }
    }
  });
}

void mask_bits() {
  everywhere([](Shape shape, int64_t offset) {
    Random random(shape.rows * 104729 + shape.columns);
    const View view = view_of(shape.rows, shape.columns), flat = flat_view(shape.rows, shape.columns);
    const int64_t n = shape.rows * shape.columns;
    Buffer<uint8_t> keep(n, offset), mask(view.groups, offset), back(n, offset + 2);
    std::vector<bool> want(n);
    for (int64_t i = 0; i < n; ++i) keep[i] = (want[i] = random.bits() & 1) ? 1 : 0;
    that(!mask_pack(keep.data(), mask.data(), flat, kQueue), "launch");
    check_mask_is(mask.data(), view, want, "mask_pack");
    that(!mask_unpack(mask.data(), back.data(), flat, kQueue), "launch");
    for (int64_t i = 0; i < n; ++i)
      that(back[i] == keep[i], "mask_unpack: %ld of [%ld, %ld]", i, shape.rows, shape.columns);
  });
}

void transpose() {
  for (int64_t a : {1, 3, 7, 8, 9, 16, 24, 49, 64, 65, 264})
    for (int64_t b : {1, 2, 7, 8, 9, 15, 16, 17, 49, 63, 64})
      for (int64_t rows : {1, 3, 40}) {
        Random random(a * 1009 + b);
        const View view = view_of(rows, a * b);
        Buffer<uint8_t> from(view.groups, 1), to(view.groups, 3), back(view.groups);
        for (int64_t i = 0; i < view.groups; ++i) from[i] = static_cast<uint8_t>(random.bits());  // unused bits too
        std::vector<bool> want(rows * a * b);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t i = 0; i < a; ++i)
            for (int64_t j = 0; j < b; ++j) want[(r * b + j) * a + i] = bit(from.data() + r * view.bytes, i * b + j);
        grid().most_blocks = rows == 3 ? 1 : 5;
        grid().order = kOrders[(a + b) % 3];
        that(!transpose_bits(from.data(), to.data(), rows, a, b, kQueue), "launch");
        check_mask_is(to.data(), view, want, "transpose_bits");
      }
}

template <class T>
void threshold_relu_of() {
  using C = compare_t<T>;
  everywhere(
      [](Shape shape, int64_t offset) {
        const int64_t n = shape.rows * shape.columns;
        // Ways to lay channels over the columns: one theta; side by side; planes; a channel a row of a 1-d tensor.
        struct Channels {
          int64_t channels, inner;
        };
        std::vector<Channels> ways = {{1, INT64_MAX / 2}};
        if (shape.columns > 1) ways.push_back({shape.columns, 1});
        if (shape.columns == 1 && shape.rows > 1) ways.push_back({shape.rows, 1});
        for (int64_t channels : {3, 8, 9})
          if (shape.columns > channels && shape.columns % channels == 0)
            ways.push_back({channels, shape.columns / channels}), ways.push_back({channels, 1});
        int way_number = 0;
        for (const Channels& way : ways)
          for (bool has_max : {false, true}) {
            const bool in_place = (way_number++ + offset) % 2;
            Random random(n + way.channels);
            const View view = view_of(shape.rows, shape.columns);
            Buffer<T> x(n, offset), y(n, (offset + 1) % 4);
            Buffer<C> theta(way.channels, offset);
            Buffer<uint8_t> mask(view.groups, offset);
            fill(x, random);
            const bf16 bf16_nan{0x7fc0};
            const f16 f16_nan{0x7e00};
            if (n > 3) {
              if constexpr (sizeof(T) >= 4)
                x[n / 2] = std::numeric_limits<T>::quiet_NaN(), x[1] = std::numeric_limits<T>::infinity();
              else if constexpr (std::is_same_v<T, bf16>) x[n / 2] = bf16_nan, x[1] = bf16{0x7f80};
              else x[n / 2] = f16_nan, x[1] = f16{0x7c00};
            }
            for (int64_t c = 0; c < way.channels; ++c)
              theta[c] = static_cast<C>(random.bits() % 4 == 0 ? 0 : std::fabs(random.uniform()));
            if (n > 4) theta[0] = static_cast<C>(std::fabs(number(x[0])));  // exactly at the threshold: kept
            const std::vector<T> before(x.data(), x.data() + n);
            T* out = in_place ? x.data() : y.data();
            uint64_t max_stored = 0;  // 0.75 is exact in every type
            if constexpr (std::is_same_v<T, float>) max_stored = 0x3f400000;
            else if constexpr (std::is_same_v<T, double>) max_stored = 0x3fe8000000000000;
            else max_stored = std::is_same_v<T, bf16> ? 0x3f40 : 0x3a00;
            that(!threshold_relu({element<T>(), x.data(), out, mask.data(), flat_view(shape.rows, shape.columns),
                                  theta.data(), way.channels, way.inner, has_max, 0.75, max_stored},
                                 kQueue),
                 "launch");
            T top;
            std::memcpy(&top, &max_stored, sizeof top);
            std::vector<bool> want(n);
            for (int64_t i = 0; i < n; ++i) {
              const double v = number(before[i]), limit = theta[i / way.inner % way.channels];
              T expect = before[i];
              bool passes = std::isnan(v);
              if (v < limit) expect = T{};
              else if (has_max && v > 0.75) expect = top;
              if (!std::isnan(v)) passes = v >= limit && v > 0 && !(has_max && v >= 0.75);
              want[i] = passes;
              that(same_bits(out[i], expect), "threshold_relu: %ld of [%ld, %ld], %ld channels of %ld: %g, theta %g", i,
                   shape.rows, shape.columns, way.channels, way.inner, v, limit);
            }
            check_mask_is(mask.data(), view, want, "threshold_relu");
          }
      },
      true);
}

void half_precision() {
  for (uint32_t u = 0; u < 65536; ++u) {
    const f16 v{static_cast<uint16_t>(u)};
    const float got = widen(v);
    const double want = number(v);
    that(std::isnan(want) ? std::isnan(got) : got == want && std::signbit(got) == std::signbit(want),
         "f16 %04x: %g, want %g", u, got, want);
  }
}

void large_indices() {
  that(divide(7, 2) == 3 && divide(INT64_MAX / 2, 3) == INT64_MAX / 2 / 3, "divide");
  that(divide((int64_t{1} << 32) + 5, 7) == ((int64_t{1} << 32) + 5) / 7 && divide(5, int64_t{1} << 40) == 0, "divide");
  that(divide(UINT32_MAX, 1) == UINT32_MAX && divide(UINT32_MAX, UINT32_MAX) == 1, "divide");
  const View view = view_of(3, (int64_t{1} << 32) + 5);  // over 2^32 elements a row: positions only, no memory
  const Group last = group_of(view, view.groups - 1), second = group_of(view, view.bytes);
  that(last.at == 2 * view.columns + (int64_t{1} << 32) && last.count == 5, "last group at %ld, %d", last.at,
       last.count);
  that(second.at == view.columns && second.count == 8, "second row at %ld, %d", second.at, second.count);
}

void no_launch_when_empty() {
  grid().launches = 0;
  uint8_t byte = 0;
  int64_t none = 0;
  for (const View& view : {view_of(0, 9), view_of(9, 0), flat_view(0, 8), flat_view(5, 0)}) {
    mask_apply(4, &byte, &byte, &byte, view, kQueue);
    mask_pack(&byte, &byte, view, kQueue);
    mask_unpack(&byte, &byte, view, kQueue);
    threshold_relu({Element::kF32, &byte, &byte, &byte, view, &byte, 1, 1, false, 0, 0}, kQueue);
    statistics_threshold({Element::kF32, &byte, &byte, &byte, &byte, &none, view, 1, false}, Pass::kFused, kQueue);
  }
  transpose_bits(&byte, &byte, 0, 8, 3, kQueue);
  that(grid().launches == 0, "%ld launches for empty tensors", grid().launches);
  Buffer<float> one(1);
  Buffer<uint8_t> mask(1);
  mask_apply(4, one.data(), one.data(), mask.data(), flat_view(1, 1), kQueue);
  that(grid().launches == 1, "%ld launches for one element", grid().launches);
}

}  // namespace

void mask_apply_group() {
  mask_apply_of<uint16_t>();
  mask_apply_of<uint32_t>();
  mask_apply_of<uint64_t>();
}
void mask_bits_group() { mask_bits(); }
void transpose_bits_group() { transpose(); }
void threshold_relu_group() {
  threshold_relu_of<float>();
  threshold_relu_of<double>();
  threshold_relu_of<bf16>();
  threshold_relu_of<f16>();
}
void elements_group() {
  half_precision();
  large_indices();
}
void empty_group() { no_launch_when_empty(); }

}  // namespace checks
