// conv2d and conv2d_int8: x [N, C, H, W], then an optional residual -> [N, K, H', W'].
#include "engine/program/int8_layer.h"
#include "engine/steps/int8/depthwise_step.h"
#include "layer_checks.h"
#include "table.h"

namespace secateur::engine {
namespace {

// Checks the geometry of either kind. Takes the kernel size from the weights.
template <class T>
void check_geometry(const Adding& op, const WeightsOf<T>& weights, Window& window, int64_t groups) {
  op.want_planes();
  check_weights(op, weights, 4);
  window.kernel = {weights.shape()[2], weights.shape()[3]};
  check_window(op, window);
  const int64_t channels = op.x().channels, k = weights.neurons();
  if (groups < 1 || channels % groups != 0 || k % groups != 0)
    op.refuse("groups must divide the channels, ", channels, " and ", k, ", got ", groups);
  int64_t per_neuron;
  if (__builtin_mul_overflow(channels / groups, window.kernel[0] * window.kernel[1], &per_neuron))
    per_neuron = INT64_MAX;
  if (weights.per_neuron() != per_neuron)
    op.refuse("weight must have ", per_neuron, " elements an output channel, got ", weights.per_neuron());
}

void check_residual(const Adding& op, int64_t channels, bool bytes) {
  if (op.inputs() < 2) return;
  op.want(1, "residual", ValueKind::kPlanes);
  const Value& residual = op.input(1);
  if (residual.quant.has_value() != bytes)
    op.refuse("the residual must be ", bytes ? "bytes" : "real values", ", as x is");
  if (residual.channels != channels) op.refuse("residual must have ", channels, " channels, got ", residual.channels);
}

Value check_conv(const Adding& op, ConvAttributes& a) {
  check_geometry(op, *a.weights, a.window, a.groups);
  const int64_t k = a.weights->neurons();
  if (!a.bias.empty()) op.want_count("bias", a.bias.size(), k);
  op.want_real();
  check_residual(op, k, false);
  check_activation(op, a.activation, k);
  return {ValueKind::kPlanes, k, {}};
}

Value check_int8_conv(const Adding& op, Int8ConvAttributes& a) {
  check_quant(op, a.quant);
  check_geometry(op, *a.bytes, a.window, a.groups);
  check_int8_layer(op, a);
  const int64_t k = a.bytes->neurons();
  check_residual(op, k, true);
  check_activation(op, a.activation, k);
  return {ValueKind::kPlanes, k, a.quant};
}

void place(PlanBuilder& builder, const Op& op, const Window& window, int64_t channels, const Activation& activation) {
  PlanBuilder::Windowed windowed{window, channels};
  windowed.may_choose_cells = op.inputs.size() == 1 && window.kernel == Pair{1, 1} && window.stride == Pair{1, 1} &&
                              window.padding == Sides{0, 0, 0, 0};
  const auto record = builder.place_window(op, windowed);
  if (!record) return;
  builder.set_never_negative(op.output, activation.never_negative());
  builder.add(*record);
}
void place_conv(PlanBuilder& builder, const Op& op, const ConvAttributes& a) {
  place(builder, op, a.window, a.weights->neurons(), a.activation);
}
void place_int8_conv(PlanBuilder& builder, const Op& op, const Int8ConvAttributes& a) {
  place(builder, op, a.window, a.bytes->neurons(), a.activation);
}

void make_conv(StepMaker& steps, const Op& op, const ConvAttributes& a, const Record& r) {
  const StepContext& context = steps.context();
  steps.add_conv(std::make_unique<FloatConvStep>(op.name, a, context.stores, r.x, r.y, r.other, context.kernels), r.y);
}

void make_int8_conv(StepMaker& steps, const Op& op, const Int8ConvAttributes& a, const Record& r) {
  const StepContext& context = steps.context();
  const bool any_kernel = steps.asked_for() != Kernels::kBlocks && steps.asked_for() != Kernels::kBlocks4x4;
  const auto& random = steps.random();
  if (any_kernel && r.other < 0 && fits_depthwise(a, context.quads) &&
      !(random && random->draws(op.name, {a.bytes->neurons(), context.stores[r.x].layout.height}).below(2)))
    return steps.add(make_int8_depthwise(context, op.name, a, r.x, r.y, random ? kAtRandom : ""));
  steps.add_conv(
      std::make_unique<Int8ConvStep>(op.name, a, context.stores, r.x, r.y, r.other, context.kernels, context.quads),
      r.y);
}

}  // namespace

PlannedKind conv2d() { return kind_of<ConvAttributes, check_conv, place_conv, make_conv>("conv2d", 2); }
PlannedKind conv2d_int8() {
  return kind_of<Int8ConvAttributes, check_int8_conv, place_int8_conv, make_int8_conv>("conv2d_int8", 2);
}

}  // namespace secateur::engine
