// map: y = act(join(x * scale + shift, other)), elementwise. other has the shape of x, or is rows [N, C] for planes.
#include "engine/program/int8_layer.h"
#include "engine/steps/int8/int8_steps.h"
#include "engine/steps/planes_steps.h"
#include "engine/steps/rows_steps.h"
#include "table.h"

namespace secateur::engine {
namespace {

Value check(const Adding& op, MapAttributes& a) {
  check_quant(op, a.quant);
  const Value& x = op.x();
  for (size_t i = 0; i < op.inputs(); ++i)
    if (!x.planes() || !op.input(i).planes()) op.want_real(i);
  if (a.quant && !x.planes()) op.refuse("an output of bytes is for planes");
  check_theta(op, a.theta, a.quant, x.channels);
  if (!a.scale.empty() || !a.shift.empty()) {
    if (x.channels < 0) op.refuse("scale and shift need a known number of channels");
    if (!a.scale.empty()) op.want_count("scale", a.scale.size(), x.channels);
    if (!a.shift.empty()) op.want_count("shift", a.shift.size(), x.channels);
  }
  if ((a.join != cpu::Binary::kNone) != (op.inputs() == 2)) op.refuse("join needs two values, \"none\" one");
  if (op.inputs() == 2) {
    const Value& other = op.input(1);
    if (!x.planes() && other.planes()) op.refuse("other must be rows, as x is");
    if (other.channels >= 0 && x.channels >= 0 && other.channels != x.channels)
      op.refuse("other must have ", x.channels, " channels, got ", other.channels);
  }
  check_activation(op, a.activation, x.channels);
  return {x.kind, x.channels, a.quant};
}

void place(PlanBuilder& builder, const Op& op, const MapAttributes& a) {
  const int x = op.inputs[0], other = op.inputs.size() > 1 ? op.inputs[1] : -1;
  Record record = builder.record();
  const bool planes = builder.value(x).planes(), broadcast = other >= 0 && planes && !builder.value(other).planes();
  const auto shape = builder.shape(x);
  const int64_t features = planes ? shape[0] : builder.features(x);
  if (other >= 0 && !builder.value(other).planes() && builder.features(other) != features)
    unplannable(op.name, "x has ", features, planes ? " channels" : " features", ", other has ",
                builder.features(other));
  if (!planes) {
    builder.set_features(op, features);
    return builder.add(record);
  }
  builder.set_shape(op, shape);
  if (broadcast) {
    record.rows = other;
  } else if (other >= 0) {
    const auto second = builder.shape(other);
    if (second != shape)
      unplannable(op.name, "x is ", size_of(shape[1], shape[2]), ", other is ", size_of(second[1], second[2]));
    record.other = builder.use(other, builder.cells_of(x), {});
  }
  record.x = builder.first_store(x);
  record.y = builder.new_store(op.output, builder.cells_of(x));
  builder.set_never_negative(op.output, a.activation.never_negative());
  builder.add(record);
}

void make(StepMaker& steps, const Op& op, const MapAttributes& a, const Record& r) {
  const StepContext& context = steps.context();
  if (r.y < 0) steps.add(make_rows_map(op, steps.features(op.output), context.kernels));
  else if (steps.is_bytes(r.x) || steps.is_bytes(r.y) || steps.is_bytes(r.other))
    steps.add_with_halo(make_int8_map(context, op.name, a, r.x, r.other, r.rows, r.y), r.y);
  else steps.add(make_map(context, op.name, a, r.x, r.other, r.rows, r.y));
}

}  // namespace

PlannedKind map() { return kind_of<MapAttributes, check, place, make>("map", 2); }

}  // namespace secateur::engine
