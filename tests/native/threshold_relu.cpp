#include "testing.h"

namespace secateur::test {
namespace {

struct Shape {
  int64_t channels, inner;
};

template <class T, class C>
void test_span(cpu::ThresholdReluFn<T, C> kernel, Random& random, int64_t n, int64_t begin, Shape shape, bool has_max) {
  const std::vector<T> x = inputs<T>(random, n, true);
  std::vector<C> theta(shape.channels);
  for (C& t : theta) t = static_cast<C>(random() % 4 * 0.25);  // 0 is plain ReLU
  const C max = static_cast<C>(0.875);                         // exact in every type
  const T max_stored = element<T>(0.875);

  const Buffer<T> from(x), to(n), in_place(x);
  const Buffer<uint8_t> mask(bytes_of(n)), mask_in_place(bytes_of(n));
  const Buffer<C> thetas(theta);
  const cpu::ThetaView<C> view{thetas.data(), shape.channels, shape.inner};
  kernel({from.data(), to.data(), mask.data(), begin, n, view, has_max, max, max_stored});
  kernel({in_place.data(), in_place.data(), mask_in_place.data(), begin, n, view, has_max, max, max_stored});

  for (int64_t i = begin; i < n; ++i) {
    const double limit = theta[i / shape.inner % shape.channels], v = value(x[i]);
    T want = x[i];
    bool passes = !(v <= 0);
    if (v < limit) {
      want = element<T>(0.0);
      passes = false;
    } else if (has_max && v > max) {
      want = max_stored;
    }
    if (has_max && v >= max) passes = false;
    check(same_bits(to[i], want) && same_bits(in_place[i], want), "threshold_relu ", type_name<T>(), ": n ", n,
          ", begin ", begin, ", channels ", shape.channels, ", inner ", shape.inner, ", element ", i, " = ", v,
          ", got ", value(to[i]));
    check(bit(mask.data(), i) == passes && bit(mask_in_place.data(), i) == passes, "threshold_relu ", type_name<T>(),
          ": mask, n ", n, ", element ", i, " = ", v);
  }
  for (int64_t b = 0; b < begin / 8; ++b)
    check(mask[b] == 0xa5, "threshold_relu: wrote mask byte ", b, " before begin");
  if (n > begin)
    for (int64_t i = n; i < 8 * bytes_of(n); ++i)
      check(!bit(mask.data(), i), "threshold_relu: unused bit ", i, " is set");
}

template <class T, class C>
void test_type(cpu::ThresholdReluFn<T, C> kernel) {
  Random random(4);
  constexpr int64_t whole = INT64_MAX / 2;  // one theta for all
  for (int64_t n : sizes())
    for (bool has_max : {false, true}) {
      test_span(kernel, random, n, 0, {1, whole}, has_max);
      for (Shape shape :
           {Shape{3, 1}, Shape{16, 1}, Shape{37, 1}, Shape{64, 1}, Shape{5, 7}, Shape{2, 16}, Shape{3, 49}})
        test_span(kernel, random, n, 0, shape, has_max);
      if (n >= 32) test_span(kernel, random, n, 32, {5, 7}, has_max);
      if (n >= 512) test_span(kernel, random, n, 512, {37, 1}, has_max);
    }
}

}  // namespace

void test_threshold_relu(const Kernels& kernels) {
  test_type(kernels.threshold_relu_f32);
  test_type(kernels.threshold_relu_f64);
  test_type(kernels.threshold_relu_bf16);
  test_type(kernels.threshold_relu_f16);
}

}  // namespace secateur::test
