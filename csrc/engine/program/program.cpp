#include "program.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "engine/plan/plan.h"
#include "integer_checks.h"
#include "registry.h"

namespace secateur::engine {
namespace {

constexpr int64_t kLargest = int64_t{1} << 20;  // of any kernel size, stride, padding, dilation
constexpr size_t kPlans = 6;                    // kept at a time

[[noreturn]] void refuse(const std::string& op, const std::string& what) {
  throw std::invalid_argument("engine: " + op + ": " + what);
}

void check_size(const std::string& op, const char* argument, size_t got, int64_t want) {
  if (static_cast<int64_t>(got) != want)
    refuse(op, std::string(argument) + " must have " + std::to_string(want) + " elements, got " + std::to_string(got));
}

void check_window(const std::string& op, const Window& w) {
  for (int i = 0; i < 2; ++i) {
    if (w.kernel[i] < 1 || w.kernel[i] > kLargest || w.stride[i] < 1 || w.stride[i] > kLargest || w.dilation[i] < 1 ||
        w.dilation[i] > kLargest)
      refuse(op, "kernel, stride and dilation must be between 1 and 2^20, got " + std::to_string(w.kernel[i]) + ", " +
                     std::to_string(w.stride[i]) + ", " + std::to_string(w.dilation[i]));
  }
  for (int64_t p : w.padding)
    if (p < 0 || p > kLargest) refuse(op, "padding must be between 0 and 2^20, got " + std::to_string(p));
}

void check_activation(const std::string& op, const Activation& a, int64_t channels) {
  if (a.act == cpu::Act::kThreshold) {
    if (channels < 0) refuse(op, "a threshold needs a known number of channels");
    check_size(op, "theta", a.theta.size(), channels);
    for (float t : a.theta)
      if (!(t >= 0)) refuse(op, "theta must be at least 0, got " + std::to_string(t));
  } else if (!a.theta.empty()) {
    refuse(op, "theta is for the activation \"threshold\" only");
  }
  if (std::isnan(a.lo) || std::isnan(a.hi)) refuse(op, "the bounds of an activation must not be NaN");
}

}  // namespace

Program::Program() = default;
Program::~Program() = default;

void Program::check_value(const std::string& op, const char* argument, int value, std::optional<ValueKind> kind) const {
  if (value < 0 || value >= static_cast<int>(values_.size()))
    refuse(op, std::string(argument) + " must be a value of this program, got " + std::to_string(value));
  if (kind && values_[value].kind != *kind)
    refuse(op, std::string(argument) + " must be " + (*kind == ValueKind::kPlanes ? "planes" : "rows"));
}

int Program::new_value(ValueKind kind, int64_t channels) {
  values_.push_back({kind, channels, {}});
  return static_cast<int>(values_.size()) - 1;
}

int Program::input(ValueKind kind, int64_t channels) {
  if (finished_) refuse("input", "the program is finished");
  if (channels < 1 || channels > INT32_MAX)
    refuse("input", "channels must be at least 1, and below 2^31, got " + std::to_string(channels));
  inputs_.push_back(new_value(kind, channels));
  return inputs_.back();
}

// What each kind of operation may bring at all; the rest of add() then looks only at what belongs to it.
void Program::check_form(const Op& op) const {
  if (op.inputs.empty()) refuse(op.name, "needs an input");
  for (int v : op.inputs) check_value(op.name, "x", v, std::nullopt);
  const bool layer = op.kind == OpKind::kConv || op.kind == OpKind::kLinear;
  const size_t most = op.kind == OpKind::kConcat                            ? SIZE_MAX
                      : op.kind == OpKind::kConv || op.kind == OpKind::kMap ? 2
                                                                            : 1;
  if (op.inputs.size() > most)
    refuse(op.name, "takes at most " + std::to_string(most) + " inputs, got " + std::to_string(op.inputs.size()));
  if (layer != (op.weights || op.bytes) || (op.weights && op.bytes))
    refuse(op.name, layer ? "needs weights, of one kind" : "takes no weights");
  if (!layer) return;
  // Rows of nonzeros are counted in 32 bits, and so are channels.
  const int64_t k = op.neurons(), n = op.per_neuron(),
                nonzeros = op.bytes ? op.bytes->nonzeros() : op.weights->nonzeros();
  if (k < 1 || n < 1) refuse(op.name, "weight must have elements");
  if (k > INT32_MAX || n > INT32_MAX || nonzeros > UINT32_MAX)
    refuse(op.name, "weight must have fewer than 2^31 rows and columns, and 2^32 nonzeros");
  if (op.weights && op.quant) refuse(op.name, "an output of bytes needs a layer of bytes");
}

int Program::add(Op op) {
  if (finished_) refuse(op.name, "the program is finished");
  check_form(op);
  const Value x = values_[op.inputs[0]];
  ValueKind kind = x.kind;
  int64_t channels = x.channels;
  auto want = [&](ValueKind k) { check_value(op.name, "x", op.inputs[0], k); };
  if (op.quant) check_quant(op, *op.quant);
  std::optional<Quant> quant = op.quant;
  // Bytes and real values are kept apart: what takes the one refuses the other.
  auto want_real = [&](int v) {
    if (values_[v].quant) refuse(op.name, "x must be real values, not bytes");
  };
  switch (op.kind) {
    case OpKind::kConv: {
      want(ValueKind::kPlanes);
      check_window(op.name, op.window);
      const int64_t taps = op.window.kernel[0] * op.window.kernel[1], k = op.neurons();
      if (op.groups < 1 || x.channels % op.groups != 0 || k % op.groups != 0)
        refuse(op.name, "groups must divide the channels, " + std::to_string(x.channels) + " and " + std::to_string(k) +
                            ", got " + std::to_string(op.groups));
      int64_t per_neuron;
      if (__builtin_mul_overflow(x.channels / op.groups, taps, &per_neuron)) per_neuron = INT64_MAX;
      if (op.per_neuron() != per_neuron)
        refuse(op.name, "weight must have " + std::to_string(per_neuron) + " elements an output channel, got " +
                            std::to_string(op.per_neuron()));
      if (!op.bias.empty()) check_size(op.name, "bias", op.bias.size(), k);
      channels = k;
      if (op.bytes) check_integer_layer(op, x);
      else want_real(op.inputs[0]);
      if (op.inputs.size() > 1) {
        check_value(op.name, "residual", op.inputs[1], ValueKind::kPlanes);
        if (values_[op.inputs[1]].quant.has_value() != (op.bytes != nullptr))
          refuse(op.name, std::string("the residual must be ") + (op.bytes ? "bytes" : "real values") + ", as x is");
        if (values_[op.inputs[1]].channels != k)
          refuse(op.name, "residual must have " + std::to_string(k) + " channels, got " +
                              std::to_string(values_[op.inputs[1]].channels));
      }
      break;
    }
    case OpKind::kLinear:
      want(ValueKind::kRows);
      if (x.channels >= 0 && x.channels != op.per_neuron())
        refuse(op.name,
               "weight must have " + std::to_string(x.channels) + " columns, got " + std::to_string(op.per_neuron()));
      channels = op.neurons();
      if (!op.bias.empty()) check_size(op.name, "bias", op.bias.size(), channels);
      if (op.bytes) check_integer_layer(op, x);
      else want_real(op.inputs[0]);
      break;
    case OpKind::kMaxPool:
    case OpKind::kAvgPool: {
      want(ValueKind::kPlanes);
      check_window(op.name, op.window);
      const auto& w = op.window;
      for (int i = 0; i < 2; ++i)
        if (w.padding[i] > w.kernel[i] / 2 || w.padding[i + 2] > w.kernel[i] / 2)
          refuse(op.name, "padding must be at most half of the kernel size");
      if (op.kind == OpKind::kMaxPool || !quant) quant = x.quant;
      if (quant && !x.quant) refuse(op.name, "an output of bytes needs an input of bytes");
      if (op.kind == OpKind::kMaxPool) break;
      if (w.dilation != std::array<int64_t, 2>{1, 1}) refuse(op.name, "an average has no dilation");
      if (op.divisor < 0) refuse(op.name, "divisor must be at least 0, got " + std::to_string(op.divisor));
      if (!x.quant) break;
      // Sums of bytes are exact in float32, and what they become stays within 32 bits.
      if (w.kernel[0] * w.kernel[1] > 65536) refuse(op.name, "a window over bytes must have at most 65536 places");
      check_ratio(op, *x.quant, *quant);
      break;
    }
    case OpKind::kGlobalPool:
      want(ValueKind::kPlanes);
      kind = ValueKind::kRows;
      if (quant && !x.quant) refuse(op.name, "an output of bytes needs an input of bytes");
      break;
    case OpKind::kQuantize:
      want_real(op.inputs[0]);
      if (!quant) refuse(op.name, "needs a scale and a zero point");
      check_theta(op, channels);
      break;
    case OpKind::kDequantize:
      if (!x.quant) refuse(op.name, "x must be bytes");
      quant.reset();
      break;
    case OpKind::kMap: {
      if (x.kind == ValueKind::kRows)
        for (int v : op.inputs) want_real(v);
      if (!quant && !op.end.theta.empty()) refuse(op.name, "a theta in bytes is for an output of bytes");
      if (op.inputs.size() > 1 && values_[op.inputs[1]].kind == ValueKind::kRows) want_real(op.inputs[1]);
      if (quant && x.kind == ValueKind::kRows) refuse(op.name, "an output of bytes is for planes");
      if (quant) check_theta(op, channels);
      if (!op.scale.empty() || !op.shift.empty()) {
        if (channels < 0) refuse(op.name, "scale and shift need a known number of channels");
        if (!op.scale.empty()) check_size(op.name, "scale", op.scale.size(), channels);
        if (!op.shift.empty()) check_size(op.name, "shift", op.shift.size(), channels);
      }
      if ((op.join != cpu::Join::kNone) != (op.inputs.size() == 2))
        refuse(op.name, "join needs two values, \"none\" one");
      if (op.inputs.size() == 2) {
        const Value other = values_[op.inputs[1]];
        if (x.kind == ValueKind::kRows && other.kind != ValueKind::kRows)
          refuse(op.name, "other must be rows, as x is");
        if (other.channels >= 0 && channels >= 0 && other.channels != channels)
          refuse(op.name,
                 "other must have " + std::to_string(channels) + " channels, got " + std::to_string(other.channels));
      }
      break;
    }
    case OpKind::kConcat:
      channels = 0;
      for (int v : op.inputs) {
        check_value(op.name, "xs", v, kind);
        if (values_[v].quant != x.quant) refuse(op.name, "xs must all be real values, or bytes of one scale");
        if (x.quant && kind == ValueKind::kRows) refuse(op.name, "rows of bytes cannot be joined");
        channels = channels < 0 || values_[v].channels < 0 ? -1 : channels + values_[v].channels;
        if (channels > INT32_MAX) refuse(op.name, "an output must have fewer than 2^31 channels");
      }
      break;
    case OpKind::kSelect:
      want(ValueKind::kPlanes);
      if (op.index.empty()) refuse(op.name, "index must not be empty");
      quant = x.quant;
      for (int64_t i : op.index)
        if (i < 0 || i >= x.channels)
          refuse(op.name, "index must be below " + std::to_string(x.channels) + ", got " + std::to_string(i));
      channels = static_cast<int64_t>(op.index.size());
      break;
    case OpKind::kFlatten:
      want(ValueKind::kPlanes);
      kind = ValueKind::kRows;
      quant = x.quant;
      channels = -1;
      break;
  }
  check_activation(op.name, op.activation, channels);
  if (op.kind == OpKind::kConcat) quant = x.quant;
  op.output = new_value(kind, channels);
  values_.back().quant = quant;
  op.quant = quant;
  ops_.push_back(std::move(op));
  return ops_.back().output;
}

void Program::output(int value) {
  if (finished_) refuse("output", "the program is finished");
  check_value("output", "value", value, std::nullopt);
  if (values_[value].quant) refuse("output", "value must be real, not bytes");
  outputs_.push_back(value);
}

void Program::finish() {
  if (outputs_.empty()) refuse("finish", "a program needs an output");
  finished_.store(true, std::memory_order_release);
}

std::shared_ptr<Plan> Program::plan(const std::vector<std::array<int64_t, 2>>& sizes, double budget,
                                    const std::vector<const float*>& example, Kernels kernels) {
  if (!finished_) refuse("plan", "the program is not finished");
  const auto is_planes = [&](int v) { return values_[v].kind == ValueKind::kPlanes; };
  const auto images = std::count_if(inputs_.begin(), inputs_.end(), is_planes);
  if (static_cast<int64_t>(sizes.size()) != images)
    refuse("plan", "sizes must be one for each input of planes, " + std::to_string(images) + ", got " +
                       std::to_string(sizes.size()));
  if (!example.empty() && example.size() != inputs_.size())
    refuse("plan", "example must be one image for each input, " + std::to_string(inputs_.size()) + ", got " +
                       std::to_string(example.size()));
  const std::lock_guard lock(mutex_);
  const int isa = 2 * static_cast<int>(cpu::current_isa()) + cpu::dot_allowed();
  for (size_t i = 0; i < plans_.size(); ++i)
    if (plans_[i].sizes == sizes && plans_[i].isa == isa) {
      std::rotate(plans_.begin(), plans_.begin() + static_cast<ptrdiff_t>(i),
                  plans_.begin() + static_cast<ptrdiff_t>(i) + 1);
      return plans_.front().plan;
    }
  auto made = std::make_shared<Plan>(*this, sizes, cpu::kernels().engine, cpu::quad_kernels(), kernels);
  made->choose(budget, example, kernels, active_);
  plans_.insert(plans_.begin(), {sizes, isa, made});
  if (plans_.size() > kPlans) plans_.pop_back();
  return made;
}

int64_t hold_program(std::shared_ptr<Program> program) { return Registry<Program>::only().hold(std::move(program)); }
void release_program(int64_t id) { Registry<Program>::only().release(id); }
std::shared_ptr<Program> find_program(int64_t id) { return Registry<Program>::only().find(id); }
void lock_programs() { Registry<Program>::only().lock_all(); }
void unlock_programs() { Registry<Program>::only().unlock_all(); }

void prepare_program(Program& program, const std::vector<std::array<int64_t, 2>>& sizes, double budget,
                     const std::vector<const float*>& example, Kernels kernels) {
  program.plan(sizes, std::max(budget, 0.0), example, kernels);
}

std::vector<ProgramStep> describe_program(Program& program, const std::vector<std::array<int64_t, 2>>& sizes) {
  return program.plan(sizes, -1)->report();
}

}  // namespace secateur::engine
