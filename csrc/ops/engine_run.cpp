// Runs a segment of a compiled network in one call.
#include <algorithm>

#include "common.h"
#include "engine/plan/held_program.h"
#include "engine/run/run.h"

namespace secateur::ops {
namespace {

// step_ms: null, or receives the milliseconds of every step.
std::vector<Tensor> run_program(const char* op, std::vector<Tensor> inputs, int64_t program_id,
                                std::vector<double>* step_ms) {
  const auto held = engine::find_program(program_id);
  check(held != nullptr, op, ": program must be the id of a program that is held, got ", program_id);
  const engine::Program& program = held->program();
  const auto& ports = program.inputs();
  check(inputs.size() == ports.size(), op, ": takes ", ports.size(), " inputs, got ", inputs.size());

  engine::Call call;
  std::vector<std::array<int64_t, 2>> sizes;
  for (size_t i = 0; i < ports.size(); ++i) {
    Tensor& x = inputs[i];
    const engine::Value& value = program.values()[ports[i]];
    const int64_t rank = value.kind == engine::ValueKind::kPlanes ? 4 : 2;
    check(x.is_cpu(), op, ": input ", i, " must be on the CPU");
    check(x.scalar_type() == ScalarType::Float, op, ": input ", i, " must be float32, got ", name(x.scalar_type()));
    check(x.dim() == rank && x.size(1) == value.channels, op, ": input ", i, " must be ", rank == 4 ? "[N, " : "[N, ",
          value.channels, rank == 4 ? ", H, W]" : "]", ", got ", show(x.sizes()));
    check(i == 0 || x.size(0) == call.batch, op, ": inputs must agree in N, got ", call.batch, " and ", x.size(0));
    call.batch = x.size(0);
    if (rank == 4) sizes.push_back({x.size(2), x.size(3)});
    if (!x.is_contiguous()) x = torch::stable::contiguous(x);
    call.inputs.push_back(x.const_data_ptr<float>());
  }
  const auto plan = held->plan(sizes, -1);

  std::vector<Tensor> outputs;
  for (int v : program.outputs()) {
    std::vector<int64_t> shape{call.batch};
    if (program.values()[v].kind == engine::ValueKind::kRows) shape.push_back(plan->features(v));
    else
      for (int64_t s : plan->shape(v)) shape.push_back(s);
    outputs.push_back(torch::stable::new_empty(inputs[0], {shape.data(), shape.size()}));
    call.outputs.push_back(outputs.back().mutable_data_ptr<float>());
  }
  engine::run(
      *plan, program, call, num_threads(),
      [](int64_t n, const auto& f) { parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { f(begin, end); }); },
      step_ms);
  return outputs;
}

std::vector<Tensor> engine_run(std::vector<Tensor> inputs, int64_t program) {
  return run_program("engine_run", std::move(inputs), program, nullptr);
}

// Milliseconds of every step of one image, in the order of Program.describe, float64 [steps]: for reports.
Tensor engine_step_times(std::vector<Tensor> inputs, int64_t program) {
  const char* op = "engine_step_times";
  check(!inputs.empty(), op, ": needs an input");
  std::vector<double> ms;
  run_program(op, inputs, program, &ms);
  const std::vector<int64_t> shape{static_cast<int64_t>(ms.size())};
  Tensor result = torch::stable::new_empty(inputs[0], {shape.data(), shape.size()}, ScalarType::Double);
  std::copy(ms.begin(), ms.end(), result.mutable_data_ptr<double>());
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(secateur, CPU, m) {
  m.impl("engine_run", TORCH_BOX(&engine_run));
  m.impl("engine_step_times", TORCH_BOX(&engine_step_times));
}

}  // namespace secateur::ops
