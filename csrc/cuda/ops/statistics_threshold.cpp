#include <cmath>

#include "common.h"

namespace secateur::cuda {
namespace {

struct Result {
  Tensor mask, theta;
};

void check_row(const char* op, const Tensor& bad, Queue queue) {
  int64_t row = kNoRow;
  check_launch(op, read_row(bad.const_data_ptr<int64_t>(), &row, queue));
  check(row == kNoRow, op, ": weight must be finite, got NaN or Inf (or squares beyond float64) in neuron ", row);
}

// from and to share one dense layout (to may be from). Waits for the device once, to learn whether all rows are finite:
// this runs when pruning, not in every step. In place it waits before the first weight is written.
Result threshold_dense(const char* op, const Tensor& from, const Tensor& to, const Rows& rows, Layout layout, double k,
                       bool is_signed, Queue queue) {
  const bool is_double = from.scalar_type() == ScalarType::Double;
  Tensor mask = new_mask(from, rows);
  Tensor theta = torch::stable::new_empty(from, {rows.rows}, is_double ? ScalarType::Double : ScalarType::Float);
  if (rows.rows == 0 || rows.columns == 0) {
    torch::stable::zero_(theta);
    return {mask, theta};
  }
  const Tensor bad = torch::stable::new_empty(from, {1}, ScalarType::Long);
  const StatisticsCall call{.element = element_of(from),
                            .w = from.const_data_ptr(),
                            .y = to.mutable_data_ptr(),
                            .mask = mask.mutable_data_ptr<uint8_t>(),
                            .theta = theta.mutable_data_ptr(),
                            .bad = bad.mutable_data_ptr<int64_t>(),
                            .view = view_of(rows.rows, rows.columns),
                            .k = k,
                            .is_signed = is_signed};
  check_launch(op, reset_row(call.bad, queue));
  if (from.const_data_ptr() == to.const_data_ptr()) {
    check_launch(op, cuda::statistics_threshold(call, Pass::kDecide, queue));
    check_row(op, bad, queue);
    check_launch(op, cuda::statistics_threshold(call, Pass::kApply, queue));
  } else {
    check_launch(op, cuda::statistics_threshold(call, Pass::kFused, queue));
    check_row(op, bad, queue);
  }
  return {in_logical_order(op, mask, from, rows, layout, queue), theta};
}

Rows checked(const char* op, const Tensor& weight, double k) {
  check_floating(op, "weight", weight);
  check(std::isfinite(k), op, ": k must be finite, got ", k);
  return rows_of(weight.sizes(), op);
}

// Through contiguous copies; nothing of `to` is written before all rows were found finite.
Result threshold_strided(const char* op, const Tensor& weight, Tensor& to, const Rows& rows, double k, bool is_signed,
                         Queue queue) {
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor pruned = new_like(dense);
  Result result = threshold_dense(op, dense, pruned, rows, Layout::kContiguous, k, is_signed, queue);
  torch::stable::copy_(to, pruned);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> functional(const Tensor& weight, double k, bool is_signed) {
  const char* op = "statistics_threshold";
  const Rows rows = checked(op, weight, k);
  const OnDevice on(weight);
  Tensor out = new_like(weight);
  const Layout layout = layout_of(weight);
  auto [mask, theta] = layout != Layout::kStrided && layout_of(out) == layout
                           ? threshold_dense(op, weight, out, rows, layout, k, is_signed, on.queue())
                           : threshold_strided(op, weight, out, rows, k, is_signed, on.queue());
  return {out, mask, theta};
}

std::tuple<Tensor, Tensor> in_place(Tensor weight, double k, bool is_signed) {
  const char* op = "statistics_threshold_";
  check_writable(op, "weight", weight);
  const Rows rows = checked(op, weight, k);
  const OnDevice on(weight);
  const Layout layout = layout_of(weight);
  auto [mask, theta] = layout != Layout::kStrided
                           ? threshold_dense(op, weight, weight, rows, layout, k, is_signed, on.queue())
                           : threshold_strided(op, weight, weight, rows, k, is_signed, on.queue());
  return {mask, theta};
}

}  // namespace

SECATEUR_DEVICE_IMPL(m) {
  m.impl("statistics_threshold", TORCH_BOX(&functional));
  m.impl("statistics_threshold_", TORCH_BOX(&in_place));
}

}  // namespace secateur::cuda
