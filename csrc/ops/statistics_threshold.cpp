#include <atomic>
#include <cmath>

#include "../cpu/dispatch.h"
#include "common.h"

namespace secateur::ops {
namespace {

constexpr int64_t kNone = INT64_MAX;

void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load(std::memory_order_relaxed);
  while (value < seen && !least.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

// Rows are whole for a thread, so theta does not depend on how many there are.
template <class T, class Theta>
int64_t run(cpu::StatisticsFn<T> kernel, const Tensor& from, const Tensor& to, uint8_t* mask, Theta* theta,
            const Rows& view, double k, bool is_signed) {
  const T* w = static_cast<const T*>(from.const_data_ptr());
  T* y = static_cast<T*>(to.mutable_data_ptr());
  std::atomic<int64_t> bad{kNone};
  const int64_t grain = kGrain / (view.columns + 1) + 1;
  torch::stable::parallel_for(0, view.rows, grain, [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t at = r * view.columns;
      const cpu::RowStatistics row = kernel(w + at, y + at, mask + r * view.bytes(), view.columns, k, is_signed);
      theta[r] = static_cast<Theta>(row.theta);
      if (!row.finite) lower(bad, r);
    }
  });
  return bad.load();
}

// The row that holds NaN or Inf, or kNone. Run before an in-place call writes anything: an error loses no weight.
template <class T>
int64_t first_bad_row(cpu::AllFiniteFn<T> finite, const Tensor& w, const Rows& view) {
  const T* data = static_cast<const T*>(w.const_data_ptr());
  std::atomic<int64_t> bad{kNone};
  parallel_rows(
      view,
      [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r)
          if (!finite(data + r * view.columns, view.columns)) return lower(bad, r);
      },
      [&](int64_t row, int64_t begin, int64_t end) {
        if (!finite(data + row * view.columns + begin, end - begin)) lower(bad, row);
      });
  return bad.load();
}

int64_t first_bad_row(const Tensor& w, const Rows& view) {
  const cpu::Kernels& k = cpu::kernels();
  switch (w.scalar_type()) {
    case ScalarType::Float: return first_bad_row(k.all_finite_f32, w, view);
    case ScalarType::Double: return first_bad_row(k.all_finite_f64, w, view);
    case ScalarType::BFloat16: return first_bad_row(k.all_finite_bf16, w, view);
    default: return first_bad_row(k.all_finite_f16, w, view);
  }
}

void check_row(const char* op, int64_t row) {
  check(row == kNone, op, ": weight must be finite, got NaN or Inf (or squares beyond float64) in neuron ", row);
}

struct Result {
  Tensor mask, theta;
};

// from and to share one dense layout (to may be from).
Result threshold_dense(const char* op, const Tensor& from, const Tensor& to, const Rows& view, Layout layout, double k,
                       bool is_signed) {
  const bool is_double = from.scalar_type() == ScalarType::Double;
  Tensor mask = new_mask(from, view);
  Tensor theta = torch::stable::new_empty(from, {view.rows}, is_double ? ScalarType::Double : ScalarType::Float);
  const cpu::Kernels& table = cpu::kernels();
  uint8_t* bits = mask.mutable_data_ptr<uint8_t>();
  int64_t bad = kNone;
  switch (from.scalar_type()) {
    case ScalarType::Float:
      bad = run(table.statistics_f32, from, to, bits, theta.mutable_data_ptr<float>(), view, k, is_signed);
      break;
    case ScalarType::Double:
      bad = run(table.statistics_f64, from, to, bits, theta.mutable_data_ptr<double>(), view, k, is_signed);
      break;
    case ScalarType::BFloat16:
      bad = run(table.statistics_bf16, from, to, bits, theta.mutable_data_ptr<float>(), view, k, is_signed);
      break;
    default: bad = run(table.statistics_f16, from, to, bits, theta.mutable_data_ptr<float>(), view, k, is_signed);
  }
  check_row(op, bad);
  return {mask_in_logical_order(mask, from, view, layout), theta};
}

Rows checked(const char* op, const Tensor& weight, double k) {
  check_floating(op, "weight", weight);
  check(std::isfinite(k), op, ": k must be finite, got ", k);
  return rows_of(weight.sizes(), op);
}

std::tuple<Tensor, Tensor, Tensor> statistics_threshold(const Tensor& weight, double k, bool is_signed) {
  const char* op = "statistics_threshold";
  const Rows view = checked(op, weight, k);
  Tensor out = torch::stable::empty_like(weight);
  const Layout layout = layout_of(weight);
  if (layout != Layout::kStrided && layout_of(out) == layout) {
    auto [mask, theta] = threshold_dense(op, weight, out, view, layout, k, is_signed);
    return {out, mask, theta};
  }
  const Tensor dense = torch::stable::contiguous(weight);
  Tensor pruned = torch::stable::empty_like(dense);
  auto [mask, theta] = threshold_dense(op, dense, pruned, view, Layout::kContiguous, k, is_signed);
  torch::stable::copy_(out, pruned);
  return {out, mask, theta};
}

std::tuple<Tensor, Tensor> statistics_threshold_(Tensor weight, double k, bool is_signed) {
  const char* op = "statistics_threshold_";
  const Rows view = checked(op, weight, k);
  const Layout layout = layout_of(weight);
  if (layout == Layout::kStrided) {
    const Tensor dense = torch::stable::contiguous(weight);
    Tensor pruned = torch::stable::empty_like(dense);
    auto [mask, theta] = threshold_dense(op, dense, pruned, view, Layout::kContiguous, k, is_signed);
    torch::stable::copy_(weight, pruned);
    return {mask, theta};
  }
  check_row(op, first_bad_row(weight, view));
  auto [mask, theta] = threshold_dense(op, weight, weight, view, layout, k, is_signed);
  return {mask, theta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(secateur, CPU, m) {
  m.impl("statistics_threshold", TORCH_BOX(&statistics_threshold));
  m.impl("statistics_threshold_", TORCH_BOX(&statistics_threshold_));
}

}  // namespace secateur::ops
