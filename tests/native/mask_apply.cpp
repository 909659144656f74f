#include "testing.h"

namespace secateur::test {
namespace {

template <class T>
void test_size(cpu::MaskApplyFn<T> kernel, Random& random, int64_t rows, int64_t columns, int64_t extra_stride) {
  const int64_t stride = bytes_of(columns) + extra_stride;
  std::vector<T> w(rows * columns);
  for (T& x : w) x = static_cast<T>(random());  // any bits, so NaN payloads too: they must survive
  std::vector<uint8_t> mask(rows ? (rows - 1) * stride + bytes_of(columns) : 0);
  for (uint8_t& b : mask) b = static_cast<uint8_t>(random());

  const Buffer<T> from(w), to(w.size()), in_place(w);
  const Buffer<uint8_t> bits(mask);
  kernel(from.data(), to.data(), bits.data(), rows, columns, stride);
  kernel(in_place.data(), in_place.data(), bits.data(), rows, columns, stride);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < columns; ++i) {
      const T want = bit(mask.data() + r * stride, i) ? w[r * columns + i] : T{0};
      check(to[r * columns + i] == want && in_place[r * columns + i] == want, "mask_apply_", 8 * sizeof(T), " [", rows,
            ", ", columns, "], stride ", stride, ", row ", r, ", element ", i);
    }
}

template <class T>
void test_type(cpu::MaskApplyFn<T> kernel) {
  Random random(1);
  for (int64_t n : sizes()) {
    test_size(kernel, random, 1, n, 0);
    test_size(kernel, random, 3, n, 0);
    test_size(kernel, random, 2, n, 5);
  }
  test_size(kernel, random, 0, 5, 0);
}

}  // namespace

void test_mask_apply(const Kernels& kernels) {
  test_type(kernels.mask_apply_16);
  test_type(kernels.mask_apply_32);
  test_type(kernels.mask_apply_64);
}

}  // namespace secateur::test
