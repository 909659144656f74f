#include "common.h"

#include <algorithm>
#include <utility>

namespace secateur::ops {

const char* name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(dtype);
  }
}

std::ostream& operator<<(std::ostream& out, const Argument& argument) {
  out << argument.name;
  if (argument.index >= 0) out << '[' << argument.index << ']';
  return out;
}

std::ostream& operator<<(std::ostream& out, const Shown& shown) {
  out << '[';
  for (size_t i = 0; i < shown.shape.size(); ++i) out << (i ? ", " : "") << shown.shape[i];
  return out << ']';
}

Rows rows_of(Sizes shape, const char* op) {
  if (shape.size() == 0) return {1, 1};
  int64_t columns = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    check(shape[i] >= 0, op, ": shape must not be negative, got ", show(shape));
    if (i > 0)
      check(!__builtin_mul_overflow(columns, shape[i], &columns), op, ": shape is too large, got ", show(shape));
  }
  int64_t all;
  check(!__builtin_mul_overflow(shape[0], columns, &all), op, ": shape is too large, got ", show(shape));
  return {shape[0], columns};
}

Tensor checked_mask(const char* op, const Tensor& mask, const Rows& view, const Tensor& like,
                    const Argument& argument) {
  check(mask.scalar_type() == ScalarType::Byte, op, ": ", argument, " must be uint8, got ", name(mask.scalar_type()));
  check(mask.is_cpu() == like.is_cpu() && mask.get_device_index() == like.get_device_index(), op, ": ", argument,
        " must be on the device of the tensor that it masks");
  check(mask.dim() == 2 && mask.size(0) == view.rows && mask.size(1) == view.bytes(), op, ": ", argument, " must be [",
        view.rows, ", ", view.bytes(), "] for a tensor of shape ", show(like.sizes()), ", got ", show(mask.sizes()));
  return mask.is_contiguous() ? mask : torch::stable::contiguous(mask);
}

Tensor new_mask(const Tensor& like, const Rows& view) {
  return torch::stable::new_empty(like, {view.rows, view.bytes()}, ScalarType::Byte);
}

void check_floating(const char* op, const Argument& argument, const Tensor& t) {
  const ScalarType dtype = t.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
            dtype == ScalarType::BFloat16,
        op, ": ", argument, " must be float32, float64, float16 or bfloat16, got ", name(dtype));
}

void check_writable(const char* op, const Argument& argument, const Tensor& t) {
  if (t.is_contiguous()) return;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) == 0) return;
    if (t.size(d) > 1) dims.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;  // offset of the last element in the dims so far
  for (auto [stride, size] : dims) {
    check(stride > reach, op, ": ", argument,
          " must not overlap itself in memory (clone an expanded tensor first), got shape ", show(t.sizes()),
          " with strides ", show(t.strides()));
    reach += stride * (size - 1);
  }
}

Theta checked_theta(const char* op, const Tensor& theta, const Tensor& x, const Rows& view) {
  check(theta.is_cpu() == x.is_cpu() && theta.get_device_index() == x.get_device_index(), op,
        ": theta must be on the device of x");
  check(theta.scalar_type() == ScalarType::Float || theta.scalar_type() == ScalarType::Double, op,
        ": theta must be float32 or float64, got ", name(theta.scalar_type()));
  check(theta.dim() <= 1, op, ": theta must be a scalar or [C], got shape ", show(theta.sizes()));
  const bool is_double = x.scalar_type() == ScalarType::Double;
  const int64_t channels = x.dim() == 0 ? 1 : x.dim() > 2 ? x.size(1) : x.size(x.dim() - 1);
  check(theta.numel() == 1 || theta.numel() == channels, op, ": theta must have 1 value or one for each of the ",
        channels, " channels of x ", show(x.sizes()), ", got ", theta.numel());
  // A module's theta is already right: two calls through the dispatcher cost more than a small activation.
  const ScalarType compared = is_double ? ScalarType::Double : ScalarType::Float;
  Tensor values = theta.scalar_type() == compared ? theta : torch::stable::to(theta, compared);
  if (!values.is_contiguous()) values = torch::stable::contiguous(values);
  if (theta.numel() == 1) return {values, 1, INT64_MAX / 2};
  return {values, channels, channels ? view.columns / channels : 1};
}

Layout layout_of(const Tensor& t) {
  if (t.is_contiguous()) return Layout::kContiguous;
  const int64_t dims = t.dim();
  if (dims < 3) return Layout::kStrided;
  // [N, C, spatial...] lying as [N, spatial..., C]; sizes of 1 may have any stride.
  int64_t expected = 1;
  auto fits = [&](int64_t d) {
    const bool ok = t.size(d) == 1 || t.stride(d) == expected;
    expected *= t.size(d);
    return ok;
  };
  if (!fits(1)) return Layout::kStrided;
  for (int64_t d = dims - 1; d >= 2; --d)
    if (!fits(d)) return Layout::kStrided;
  return fits(0) ? Layout::kChannelsLast : Layout::kStrided;
}

Tensor new_like(const Tensor& t) {
  if (layout_of(t) == Layout::kStrided) return torch::stable::empty_like(t);
  int32_t dtype, device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(t.dim(), t.sizes().data(), t.strides().data(), dtype, device,
                                                  t.get_device_index(), &made));
  return Tensor(made);
}

namespace {

Tensor reordered(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout, bool to_memory) {
  if (layout != Layout::kChannelsLast) return mask;
  Tensor out = new_mask(t, view);
  const int64_t channels = t.size(1), inner = channels ? view.columns / channels : 0;
  if (to_memory)
    transpose_bits(mask.const_data_ptr<uint8_t>(), out.mutable_data_ptr<uint8_t>(), view.rows, channels, inner);
  else transpose_bits(mask.const_data_ptr<uint8_t>(), out.mutable_data_ptr<uint8_t>(), view.rows, inner, channels);
  return out;
}

}  // namespace

Tensor mask_in_memory_order(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout) {
  return reordered(mask, t, view, layout, true);
}
Tensor mask_in_logical_order(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout) {
  return reordered(mask, t, view, layout, false);
}

}  // namespace secateur::ops
