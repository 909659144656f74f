#include <cstring>
#include <optional>

#include "common.h"

namespace secateur::cuda {
namespace {

template <class Bits>
uint64_t widened(Bits value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

// What a clamped element becomes.
uint64_t stored_max(double max, Element element) {
  switch (element) {
    case Element::kF32: return widened(static_cast<float>(max));
    case Element::kF64: return widened(max);
    case Element::kBF16: return widened(torch::headeronly::BFloat16(static_cast<float>(max)).x);
    default: return widened(torch::headeronly::Half(static_cast<float>(max)).x);
  }
}

// from and to share one dense layout; in channels_last memory the channels lie side by side, as in [N, C] and [C].
Tensor threshold_dense(const char* op, const Tensor& from, const Tensor& to, const Theta& theta,
                       std::optional<double> max, const Rows& rows, Layout layout, Queue queue) {
  Tensor mask = new_mask(from, rows);
  const bool side_by_side = layout == Layout::kChannelsLast || from.dim() <= 2;
  const Element element = element_of(from);
  check_launch(op, cuda::threshold_relu({.element = element,
                                         .x = from.const_data_ptr(),
                                         .y = to.mutable_data_ptr(),
                                         .mask = mask.mutable_data_ptr<uint8_t>(),
                                         .view = flat_view(rows.rows, rows.columns),
                                         .theta = theta.values.const_data_ptr(),
                                         .channels = theta.channels,
                                         .inner = theta.channels > 1 && side_by_side ? 1 : theta.inner,
                                         .has_max = max.has_value(),
                                         .max = max.value_or(0),
                                         .max_stored = stored_max(max.value_or(0), element)},
                                        queue));
  return in_logical_order(op, mask, from, rows, layout, queue);
}

Tensor apply(const char* op, const Tensor& x, Tensor& y, const Tensor& theta, std::optional<double> max) {
  check_floating(op, "x", x);
  check(!max || *max > 0, op, ": max must be > 0, got ", max.value_or(0));
  const Rows rows = rows_of(x.sizes(), op);
  const OnDevice on(x);
  // Shape and dtype only: looking at theta's values would wait for the device in every layer. A negative theta lets
  // what lies between it and 0 through, a NaN lets everything through; ThresholdReLU checks its buffer where it is set.
  const Theta limits = checked_theta(op, theta, x, rows);
  const Layout layout = layout_of(x);
  if (layout != Layout::kStrided && layout_of(y) == layout)
    return threshold_dense(op, x, y, limits, max, rows, layout, on.queue());
  const Tensor dense = torch::stable::contiguous(x);
  const Tensor out = new_like(dense);
  Tensor mask = threshold_dense(op, dense, out, limits, max, rows, Layout::kContiguous, on.queue());
  torch::stable::copy_(y, out);
  return mask;
}

std::tuple<Tensor, Tensor> functional(const Tensor& x, const Tensor& theta, std::optional<double> max) {
  Tensor y = new_like(x);
  Tensor mask = apply("threshold_relu", x, y, theta, max);
  return {y, mask};
}

Tensor in_place(Tensor x, const Tensor& theta, std::optional<double> max) {
  check_writable("threshold_relu_", "x", x);
  return apply("threshold_relu_", x, x, theta, max);
}

}  // namespace

SECATEUR_DEVICE_IMPL(m) {
  m.impl("threshold_relu", TORCH_BOX(&functional));
  m.impl("threshold_relu_", TORCH_BOX(&in_place));
}

}  // namespace secateur::cuda
