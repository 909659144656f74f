// quantize and dequantize: float <-> int8 values, planes or rows.
#include "engine/program/int8_layer.h"
#include "engine/steps/int8/int8_rows.h"
#include "engine/steps/int8/int8_steps.h"
#include "table.h"

namespace secateur::engine {
namespace {

Value check_to(const Adding& op, QuantizeAttributes& a) {
  check_quant(op, a.quant);
  op.want_real();
  if (!a.quant) op.refuse("needs a scale and a zero point");
  check_theta(op, a.theta, a.quant, op.x().channels);
  return {op.x().kind, op.x().channels, a.quant};
}

Value check_from(const Adding& op, NoAttributes&) {
  if (!op.x().quant) op.refuse("x must be bytes");
  return {op.x().kind, op.x().channels, {}};
}

void place(PlanBuilder& builder, const Op& op, bool never_negative) {
  const int x = op.inputs[0];
  Record record = builder.record();
  if (builder.value(x).planes()) {
    builder.set_shape(op, builder.shape(x));
    record.x = builder.first_store(x);
    record.y = builder.new_store(op.output, builder.cells_of(x));
    builder.set_never_negative(op.output, never_negative);
  } else {
    builder.set_features(op, builder.features(x));
  }
  builder.add(record);
}
void place_to(PlanBuilder& builder, const Op& op, const QuantizeAttributes&) { place(builder, op, false); }
void place_from(PlanBuilder& builder, const Op& op, const NoAttributes&) {
  place(builder, op, builder.never_negative(op.inputs[0]));
}

void make_to(StepMaker& steps, const Op& op, const QuantizeAttributes& a, const Record& r) {
  if (r.y >= 0) steps.add_with_halo(make_int8_quantize(steps.context(), op.name, a, r.x, r.y), r.y);
  else steps.add(make_rows_quantize(op, steps.features(op.output)));
}
void make_from(StepMaker& steps, const Op& op, const NoAttributes&, const Record& r) {
  if (r.y >= 0) steps.add_with_halo(make_int8_dequantize(steps.context(), op.name, r.x, r.y), r.y);
  else steps.add(make_rows_dequantize(op, *steps.value(op.inputs[0]).quant, steps.features(op.output)));
}

}  // namespace

PlannedKind quantize() { return kind_of<QuantizeAttributes, check_to, place_to, make_to>("quantize"); }
PlannedKind dequantize() { return kind_of<NoAttributes, check_from, place_from, make_from>("dequantize"); }

}  // namespace secateur::engine
