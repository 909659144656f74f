// linear and linear_int8: x [N, F] -> [N, K].
#include "engine/program/int8_layer.h"
#include "engine/steps/int8/int8_rows.h"
#include "engine/steps/rows_steps.h"
#include "layer_checks.h"
#include "table.h"

namespace secateur::engine {
namespace {

template <class T>
void check_columns(const Adding& op, const WeightsOf<T>& weights) {
  op.want_rows();
  check_weights(op, weights, 2);
  if (op.x().channels >= 0 && op.x().channels != weights.per_neuron())
    op.refuse("weight must have ", op.x().channels, " columns, got ", weights.per_neuron());
}

Value check_linear(const Adding& op, LinearAttributes& a) {
  check_columns(op, *a.weights);
  const int64_t k = a.weights->neurons();
  if (!a.bias.empty()) op.want_count("bias", a.bias.size(), k);
  op.want_real();
  check_activation(op, a.activation, k);
  return {ValueKind::kRows, k, {}};
}

Value check_int8_linear(const Adding& op, Int8LinearAttributes& a) {
  check_quant(op, a.quant);
  check_columns(op, *a.bytes);
  check_int8_layer(op, a);
  const int64_t k = a.bytes->neurons();
  check_activation(op, a.activation, k);
  return {ValueKind::kRows, k, a.quant};
}

void place(PlanBuilder& builder, const Op& op, int64_t columns, int64_t neurons) {
  const int64_t features = builder.features(op.inputs[0]);
  if (features != columns)
    unplannable(op.name, "expects ", columns, " features, got ", features, " (the image size decides)");
  builder.set_features(op, neurons);
  builder.add(builder.record());
}
void place_linear(PlanBuilder& builder, const Op& op, const LinearAttributes& a) {
  place(builder, op, a.weights->per_neuron(), a.weights->neurons());
}
void place_int8_linear(PlanBuilder& builder, const Op& op, const Int8LinearAttributes& a) {
  place(builder, op, a.bytes->per_neuron(), a.bytes->neurons());
}

void make_linear_step(StepMaker& steps, const Op& op, const LinearAttributes&, const Record&) {
  steps.add(make_linear(op, steps.context().kernels));
}
void make_int8_linear_step(StepMaker& steps, const Op& op, const Int8LinearAttributes&, const Record&) {
  steps.add(make_block_linear(op, steps.context().kernels, steps.context().quads));
}

}  // namespace

PlannedKind linear() { return kind_of<LinearAttributes, check_linear, place_linear, make_linear_step>("linear"); }
PlannedKind linear_int8() {
  return kind_of<Int8LinearAttributes, check_int8_linear, place_int8_linear, make_int8_linear_step>("linear_int8");
}

}  // namespace secateur::engine
