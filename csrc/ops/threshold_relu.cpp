#include <cmath>
#include <optional>

#include "common.h"
#include "cpu/dispatch.h"

namespace secateur::ops {
namespace {

template <class C>
void check_values(const char* op, const Tensor& values) {
  const C* v = values.const_data_ptr<C>();
  for (int64_t i = 0; i < values.numel(); ++i)
    check(v[i] >= 0 && std::isfinite(v[i]), op, ": theta must be finite and >= 0, got ", v[i], " for channel ", i);
}

// Checks the values, since a checkpoint may hold anything.
Theta finite_theta(const char* op, const Tensor& theta, const Tensor& x, const Rows& view) {
  Theta limits = checked_theta(op, theta, x, view);
  if (x.scalar_type() == ScalarType::Double) check_values<double>(op, limits.values);
  else check_values<float>(op, limits.values);
  return limits;
}

template <class T, class C>
T stored_max(C max);
template <>
float stored_max(float max) {
  return max;
}
template <>
double stored_max(double max) {
  return max;
}
template <>
cpu::bf16 stored_max(float max) {
  return {torch::headeronly::BFloat16(max).x};
}
template <>
cpu::f16 stored_max(float max) {
  return {torch::headeronly::Half(max).x};
}

template <class T, class C>
void run(cpu::ThresholdReluFn<T, C> kernel, const Tensor& from, const Tensor& to, uint8_t* mask, const Theta& theta,
         std::optional<double> max, const Rows& view) {
  const T* x = static_cast<const T*>(from.const_data_ptr());
  T* y = static_cast<T*>(to.mutable_data_ptr());
  const C* values = theta.values.const_data_ptr<C>();
  const C limit = max ? static_cast<C>(*max) : C{0};
  // A 1-d tensor is packed with one element per row, so its channel is the row.
  const bool row_is_channel = from.dim() == 1 && theta.channels > 1;
  auto span = [&](int64_t row, int64_t begin, int64_t end) {
    const int64_t at = row * view.columns;
    const cpu::ThetaView<C> channel{values + (row_is_channel ? row : 0), row_is_channel ? 1 : theta.channels,
                                    row_is_channel ? INT64_MAX / 2 : theta.inner};
    kernel({x + at, y + at, mask + row * view.bytes(), begin, end, channel, max.has_value(), limit,
            stored_max<T, C>(limit)});
  };
  parallel_rows(
      view,
      [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r) span(r, 0, view.columns);
      },
      span);
}

// from and to share one dense layout; in channels_last memory the channels are contiguous.
Tensor threshold_dense(const Tensor& from, const Tensor& to, Theta theta, std::optional<double> max, const Rows& view,
                       Layout layout) {
  Tensor mask = new_mask(from, view);
  uint8_t* bits = mask.mutable_data_ptr<uint8_t>();
  if (layout == Layout::kChannelsLast && theta.channels > 1) theta.inner = 1;
  const cpu::Kernels& k = cpu::kernels();
  switch (from.scalar_type()) {
    case ScalarType::Float: run(k.threshold_relu_f32, from, to, bits, theta, max, view); break;
    case ScalarType::Double: run(k.threshold_relu_f64, from, to, bits, theta, max, view); break;
    case ScalarType::BFloat16: run(k.threshold_relu_bf16, from, to, bits, theta, max, view); break;
    default: run(k.threshold_relu_f16, from, to, bits, theta, max, view);
  }
  return mask_in_logical_order(mask, from, view, layout);
}

Tensor apply(const char* op, const Tensor& x, Tensor& y, const Tensor& theta, std::optional<double> max) {
  check_floating(op, "x", x);
  check(!max || *max > 0, op, ": max must be > 0, got ", max.value_or(0));
  const Rows view = rows_of(x.sizes(), op);
  const Theta limits = finite_theta(op, theta, x, view);
  const Layout layout = layout_of(x);
  if (layout != Layout::kStrided && layout_of(y) == layout) return threshold_dense(x, y, limits, max, view, layout);
  const Tensor dense = torch::stable::contiguous(x);
  Tensor out = new_like(dense);
  Tensor mask = threshold_dense(dense, out, limits, max, view, Layout::kContiguous);
  torch::stable::copy_(y, out);
  return mask;
}

std::tuple<Tensor, Tensor> threshold_relu(const Tensor& x, const Tensor& theta, std::optional<double> max) {
  Tensor y = new_like(x);
  Tensor mask = apply("threshold_relu", x, y, theta, max);
  return {y, mask};
}

Tensor threshold_relu_(Tensor x, const Tensor& theta, std::optional<double> max) {
  check_writable("threshold_relu_", "x", x);
  return apply("threshold_relu_", x, x, theta, max);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(secateur, CPU, m) {
  m.impl("threshold_relu", TORCH_BOX(&threshold_relu));
  m.impl("threshold_relu_", TORCH_BOX(&threshold_relu_));
}

}  // namespace secateur::ops
