// select_channels: x [N, C, H, W] -> some of its channels. flatten: x -> [N, C * H * W]. No arithmetic.
#include "engine/steps/int8/int8_steps.h"
#include "engine/steps/planes_steps.h"
#include "table.h"

namespace secateur::engine {
namespace {

Value check_select(const Adding& op, SelectAttributes& a) {
  op.want_planes();
  if (a.index.empty()) op.refuse("index must not be empty");
  for (int64_t i : a.index)
    if (i < 0 || i >= op.x().channels) op.refuse("index must be below ", op.x().channels, ", got ", i);
  return {ValueKind::kPlanes, static_cast<int64_t>(a.index.size()), op.x().quant};
}

Value check_flatten(const Adding& op, NoAttributes&) {
  op.want_planes();
  return {ValueKind::kRows, -1, op.x().quant};
}

void place_select(PlanBuilder& builder, const Op& op, const SelectAttributes& a) {
  const int x = op.inputs[0];
  const auto shape = builder.shape(x);
  builder.set_shape(op, {static_cast<int64_t>(a.index.size()), shape[1], shape[2]});
  Record record = builder.record();
  record.x = builder.first_store(x);
  record.y = builder.new_store(op.output, builder.cells_of(x));
  builder.set_never_negative(op.output, builder.never_negative(x));
  builder.add(record);
}

void place_flatten(PlanBuilder& builder, const Op& op, const NoAttributes&) {
  const auto [channels, height, width] = builder.shape(op.inputs[0]);
  builder.set_features(op, channels * height * width);
  Record record = builder.record();
  record.x = builder.first_store(op.inputs[0]);
  builder.add(record);
}

void make_select(StepMaker& steps, const Op& op, const SelectAttributes& a, const Record& r) {
  steps.add(steps.is_bytes(r.x) ? make_int8_copy(steps.context(), op.name, r.x, r.y, 0, a.index)
                                : make_copy(steps.context(), op.name, r.x, r.y, 0, a.index));
}
void make_flatten_step(StepMaker& steps, const Op& op, const NoAttributes&, const Record& r) {
  steps.add(steps.is_bytes(r.x) ? make_int8_flatten(steps.context(), op.name, r.x, op.output)
                                : make_flatten(steps.context(), op.name, r.x, op.output));
}

}  // namespace

PlannedKind select_channels() {
  return kind_of<SelectAttributes, check_select, place_select, make_select>("select_channels");
}
PlannedKind flatten() { return kind_of<NoAttributes, check_flatten, place_flatten, make_flatten_step>("flatten"); }

}  // namespace secateur::engine
