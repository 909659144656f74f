// max_pool and avg_pool: x [N, C, H, W] -> [N, C, H', W'], float or int8.
#include "engine/program/int8_layer.h"
#include "engine/steps/int8/int8_steps.h"
#include "engine/steps/planes_steps.h"
#include "layer_checks.h"
#include "table.h"

namespace secateur::engine {
namespace {

void check_pool_window(const Adding& op, const Window& w) {
  op.want_planes();
  check_window(op, w);
  for (size_t i = 0; i < 2; ++i)
    if (w.padding[i] > w.kernel[i] / 2 || w.padding[i + 2] > w.kernel[i] / 2)
      op.refuse("padding must be at most half of the kernel size");
}

Value check_max(const Adding& op, MaxPoolAttributes& a) {
  check_pool_window(op, a.window);
  return op.x();
}

Value check_avg(const Adding& op, AvgPoolAttributes& a) {
  check_quant(op, a.quant);
  check_pool_window(op, a.window);
  const Value& x = op.x();
  if (a.quant && !x.quant) op.refuse("an output of bytes needs an input of bytes");
  if (a.window.dilation != Pair{1, 1}) op.refuse("an average has no dilation");
  if (a.divisor < 0) op.refuse("divisor must be at least 0, got ", a.divisor);
  const std::optional<Quant> quant = a.quant ? a.quant : x.quant;
  if (x.quant) {
    // Sums of bytes are exact in float32, and results stay within 32 bits.
    if (a.window.kernel[0] * a.window.kernel[1] > 65536)
      op.refuse("a window over bytes must have at most 65536 places");
    check_ratio(op, a, *x.quant, *quant);
  }
  return {ValueKind::kPlanes, x.channels, quant};
}

void place(PlanBuilder& builder, const Op& op, const Window& window, bool ceil_mode, bool maximum) {
  const int x = op.inputs[0];
  PlanBuilder::Windowed windowed{window, builder.shape(x)[0]};
  windowed.ceil_mode = ceil_mode;
  windowed.maximum = maximum;
  const auto record = builder.place_window(op, windowed);
  if (!record) return;
  builder.set_never_negative(op.output, builder.never_negative(x));
  builder.add(*record);
}
void place_max(PlanBuilder& builder, const Op& op, const MaxPoolAttributes& a) {
  place(builder, op, a.window, a.ceil_mode, true);
}
void place_avg(PlanBuilder& builder, const Op& op, const AvgPoolAttributes& a) {
  place(builder, op, a.window, a.ceil_mode, false);
}

void make_max(StepMaker& steps, const Op& op, const MaxPoolAttributes& a, const Record& r) {
  const auto make = steps.is_bytes(r.x) ? make_int8_max_pool : make_max_pool;
  steps.add(make(steps.context(), op.name, a, r.x, r.y));
}
void make_avg(StepMaker& steps, const Op& op, const AvgPoolAttributes& a, const Record& r) {
  const auto make = steps.is_bytes(r.x) ? make_int8_avg_pool : make_avg_pool;
  steps.add(make(steps.context(), op.name, a, r.x, r.y));
}

}  // namespace

PlannedKind max_pool() { return kind_of<MaxPoolAttributes, check_max, place_max, make_max>("max_pool"); }
PlannedKind avg_pool() { return kind_of<AvgPoolAttributes, check_avg, place_avg, make_avg>("avg_pool"); }

}  // namespace secateur::engine
