#include "common.h"

namespace secateur::cuda {
namespace {

// from and to share one dense layout; mask is in the order of their memory.
void apply_dense(const char* op, const Tensor& from, const Tensor& to, const Tensor& mask, const Rows& rows,
                 Queue queue) {
  check_launch(op, cuda::mask_apply(from.element_size(), from.const_data_ptr(), to.mutable_data_ptr(),
                                    mask.const_data_ptr<uint8_t>(), flat_view(rows.rows, rows.columns), queue));
}

void apply(const char* op, const Tensor& from, Tensor& to, const Tensor& mask) {
  check_floating(op, "weight", from);
  const Rows rows = rows_of(from.sizes(), op);
  const OnDevice on(from);
  const Tensor bits = checked_mask(op, mask, rows, from);
  const Layout layout = layout_of(from);
  if (layout != Layout::kStrided && layout_of(to) == layout) {
    apply_dense(op, from, to, in_memory_order(op, bits, from, rows, layout, on.queue()), rows, on.queue());
    return;
  }
  const Tensor dense = torch::stable::contiguous(from);
  const Tensor pruned = new_like(dense);
  apply_dense(op, dense, pruned, bits, rows, on.queue());
  torch::stable::copy_(to, pruned);
}

Tensor functional(const Tensor& weight, const Tensor& mask) {
  Tensor out = new_like(weight);
  apply("mask_apply", weight, out, mask);
  return out;
}

void in_place(Tensor weight, const Tensor& mask) {
  check_writable("mask_apply_", "weight", weight);
  apply("mask_apply_", weight, weight, mask);
}

}  // namespace

SECATEUR_DEVICE_IMPL(m) {
  m.impl("mask_apply", TORCH_BOX(&functional));
  m.impl("mask_apply_", TORCH_BOX(&in_place));
}

}  // namespace secateur::cuda
