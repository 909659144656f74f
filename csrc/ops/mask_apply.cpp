#include "common.h"
#include "cpu/dispatch.h"

namespace secateur::ops {
namespace {

template <class T>
void run(cpu::MaskApplyFn<T> kernel, const void* from, void* to, const uint8_t* mask, const Rows& view) {
  const T* w = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  const int64_t columns = view.columns, bytes = view.bytes();
  parallel_rows(
      view,
      [&](int64_t r0, int64_t r1) {
        kernel(w + r0 * columns, y + r0 * columns, mask + r0 * bytes, r1 - r0, columns, bytes);
      },
      [&](int64_t row, int64_t begin, int64_t end) {
        const int64_t at = row * columns + begin;
        kernel(w + at, y + at, mask + row * bytes + begin / 8, 1, end - begin, 0);
      });
}

// from and to share one dense layout; mask is in memory order.
void apply_dense(const Tensor& from, const Tensor& to, const Tensor& mask, const Rows& view) {
  const cpu::Kernels& k = cpu::kernels();
  const uint8_t* bits = mask.const_data_ptr<uint8_t>();
  switch (from.element_size()) {
    case 2: return run(k.mask_apply_16, from.const_data_ptr(), to.mutable_data_ptr(), bits, view);
    case 4: return run(k.mask_apply_32, from.const_data_ptr(), to.mutable_data_ptr(), bits, view);
    default: return run(k.mask_apply_64, from.const_data_ptr(), to.mutable_data_ptr(), bits, view);
  }
}

void apply(const char* op, const Tensor& from, Tensor& to, const Tensor& mask) {
  check_floating(op, "weight", from);
  const Rows view = rows_of(from.sizes(), op);
  const Tensor bits = checked_mask(op, mask, view, from);
  const Layout layout = layout_of(from);
  if (layout != Layout::kStrided && layout_of(to) == layout) {
    apply_dense(from, to, mask_in_memory_order(bits, from, view, layout), view);
    return;
  }
  Tensor dense = torch::stable::contiguous(from);
  if (dense.data_ptr() == from.data_ptr()) dense = torch::stable::clone(from);
  apply_dense(dense, dense, bits, view);
  torch::stable::copy_(to, dense);
}

Tensor mask_apply(const Tensor& weight, const Tensor& mask) {
  Tensor out = new_like(weight);
  apply("mask_apply", weight, out, mask);
  return out;
}

void mask_apply_(Tensor weight, const Tensor& mask) {
  check_writable("mask_apply_", "weight", weight);
  apply("mask_apply_", weight, weight, mask);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(secateur, CPU, m) {
  m.impl("mask_apply", TORCH_BOX(&mask_apply));
  m.impl("mask_apply_", TORCH_BOX(&mask_apply_));
}

}  // namespace secateur::ops
