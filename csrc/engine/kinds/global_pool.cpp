// global_avg_pool: x [N, C, H, W] -> [N, C], float or int8.
#include "engine/steps/int8/int8_steps.h"
#include "engine/steps/planes_steps.h"
#include "table.h"

namespace secateur::engine {
namespace {

Value check(const Adding& op, GlobalPoolAttributes& a) {
  check_quant(op, a.quant);
  op.want_planes();
  if (a.quant && !op.x().quant) op.refuse("an output of bytes needs an input of bytes");
  return {ValueKind::kRows, op.x().channels, a.quant};
}

void place(PlanBuilder& builder, const Op& op, const GlobalPoolAttributes&) {
  const int x = op.inputs[0];
  const auto [channels, height, width] = builder.shape(x);
  if (builder.value(x).quant && height * width > INT32_MAX / 256)  // sums of bytes must fit 32 bits
    unplannable(op.name, "an image of ", size_of(height, width), " is too large for an average of bytes");
  builder.set_features(op, channels);
  Record record = builder.record();
  record.x = builder.first_store(x);
  builder.add(record);
}

void make(StepMaker& steps, const Op& op, const GlobalPoolAttributes& a, const Record& r) {
  steps.add(steps.is_bytes(r.x) ? make_int8_global_pool(steps.context(), op.name, a.quant, r.x, op.output)
                                : make_global_pool(steps.context(), op.name, r.x, op.output));
}

}  // namespace

PlannedKind global_avg_pool() { return kind_of<GlobalPoolAttributes, check, place, make>("global_avg_pool"); }

}  // namespace secateur::engine
