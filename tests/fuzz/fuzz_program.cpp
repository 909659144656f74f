// Bytes as a program: operations over values, mostly fitting each other; then its plan, and calls of it.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "engine/plan/plan.h"
#include "engine/run/run.h"
#include "input.h"

using namespace secateur;
using namespace secateur::engine;
using secateur::fuzz::Input;

namespace {

// Numbers in flight, in a value or in a layer's weights: larger ones are right, but slow.
constexpr int64_t kLarge = 1 << 16;

struct Writer {
  Input& in;
  Program& program;
  bool wild = false;  // a number beyond what is small was accepted: the program is not run

  int any_value() {
    const auto n = static_cast<int64_t>(program.values().size());
    if (in.one_in(64)) return static_cast<int>(in.within(-1, n));
    // Rather the last ones, so that networks grow deep.
    return static_cast<int>(in.coin() ? n - 1 : in.within(0, n - 1));
  }
  Quant quant() {
    Quant q{in.one_in(8) ? in.real() : static_cast<float>(in.within(1, 64)) / 256, 0};
    q.zero_point = static_cast<int32_t>(in.one_in(32) ? in.within(-1, 300) : in.within(0, 255));
    return q;
  }
  Window window(int64_t most) {
    Window w;
    for (size_t i = 0; i < 2; ++i) {
      w.kernel[i] = in.size(1, most);
      w.stride[i] = in.size(1, 3);
      w.dilation[i] = in.one_in(4) ? in.size(1, 3) : 1;
      w.padding[i] = in.size(0, w.kernel[i] > 1 && w.kernel[i] < 9 ? w.kernel[i] / 2 : 0);
      w.padding[i + 2] = in.one_in(8) ? in.size(0, 4) : w.padding[i];
    }
    return w;
  }
  void activation(Op& op, int64_t channels) {
    op.activation.act = static_cast<cpu::Act>(in.within(0, static_cast<int64_t>(cpu::Act::kTanh)));
    op.activation.lo = in.one_in(4) ? in.real() : 0;
    op.activation.hi = in.one_in(4) ? in.real() : 6;
    if (op.activation.act != cpu::Act::kThreshold && !in.one_in(32)) return;
    op.activation.theta = in.reals(few(channels));
    if (!in.one_in(8))
      for (float& t : op.activation.theta) t = std::fabs(t);
  }
  // As many as there should be, or nearly.
  int64_t few(int64_t n) {
    n = std::clamp<int64_t>(n, 0, kLarge);
    return std::clamp<int64_t>(in.one_in(32) ? n + in.within(-1, 1) : n, 0, kLarge);
  }
  void theta_bytes(Op& op, int64_t channels) {
    if (!in.one_in(4)) return;
    op.end.theta.assign(static_cast<size_t>(few(channels)), static_cast<uint8_t>(in.within(0, 255)));
  }

  void layer(Op& op, int64_t k, int64_t n, bool bytes) {
    const int64_t count = std::clamp<int64_t>(k, 0, kLarge) * std::clamp<int64_t>(n, 0, kLarge);
    if (count > kLarge) throw std::invalid_argument("too large for here");
    const auto dense = in.reals(count);
    k = std::clamp<int64_t>(k, 0, kLarge);
    n = std::clamp<int64_t>(n, 0, kLarge);
    if (in.one_in(4)) op.bias = in.reals(few(k));
    if (!bytes) {
      op.weights = std::make_shared<const Weights>(dense.data(), k, n);
      activation(op, k);
      if (in.one_in(64)) op.quant = quant();
      return;
    }
    op.bias.clear();
    std::vector<int8_t> w;
    for (float x : dense)
      w.push_back(std::isfinite(x) ? static_cast<int8_t>(std::clamp(x, -2.0f, 1.98f) * 64) : int8_t{-128});
    op.bytes = std::make_shared<const ByteWeights>(w.data(), k, n);
    for (int64_t i = few(k); i > 0; --i) op.end.bias.push_back(static_cast<int32_t>(in.next() % 4096) - 2048);
    if (in.one_in(16) && !op.end.bias.empty()) op.end.bias[0] = in.coin() ? INT32_MAX : INT32_MIN;
    op.end.multiplier = in.reals(few(k));
    const float scale = in.one_in(8) ? in.real() : 0.01f;
    for (float& m : op.end.multiplier) m = std::fabs(m) * scale;
    op.end.lo = static_cast<uint8_t>(in.one_in(4) ? in.within(0, 255) : 0);
    op.end.hi = static_cast<uint8_t>(in.one_in(4) ? in.within(0, 255) : 255);
    op.end.residual_multiplier = in.one_in(4) ? in.real() : 0.5f;
    if (!in.one_in(4)) op.quant = quant();
    else activation(op, k);
    theta_bytes(op, k);
  }

  Op operation() {
    Op op;
    op.kind = static_cast<OpKind>(in.within(0, static_cast<int64_t>(OpKind::kDequantize)));
    op.name = "op";
    op.inputs = {any_value()};
    const int v = op.inputs[0];
    if (v < 0 || v >= static_cast<int>(program.values().size())) return op;
    const Value x = program.values()[static_cast<size_t>(v)];
    const bool planes = x.kind == ValueKind::kPlanes, bytes = in.one_in(32) ? in.coin() : x.quant.has_value();
    const int64_t c = x.channels;
    switch (op.kind) {
      case OpKind::kConv: {
        if (!planes && !in.one_in(16)) throw std::invalid_argument("convolutions take planes");
        op.window = window(3);
        op.groups = in.one_in(4) ? (in.coin() ? c : in.size(1, 4)) : 1;
        int64_t k = in.one_in(4) ? in.within(1, 40) : in.within(1, 8), n = 0;
        if (op.groups > 1 && op.groups < 50) k = op.groups * in.within(1, 2);
        if (__builtin_mul_overflow(op.window.kernel[0], op.window.kernel[1], &n) || op.groups == 0 ||
            __builtin_mul_overflow(n, c / op.groups, &n))
          n = 1;
        layer(op, k, few(n), bytes);
        if (in.one_in(4)) op.inputs.push_back(any_value());
        break;
      }
      case OpKind::kLinear: {
        // Features that the image size decides: a guess that comes true for small images.
        const int64_t n = c >= 0 ? few(c) : in.within(1, 64);
        layer(op, in.one_in(4) ? in.within(1, 70) : in.within(1, 9), n, bytes);
        break;
      }
      case OpKind::kMaxPool:
      case OpKind::kAvgPool:
        op.window = window(4);
        if (op.kind == OpKind::kAvgPool && !in.one_in(16)) op.window.dilation = {1, 1};
        op.ceil_mode = in.coin();
        op.count_include_pad = in.coin();
        op.divisor = in.one_in(8) ? in.size(0, 9) : 0;
        if (in.one_in(8)) op.quant = quant();
        break;
      case OpKind::kGlobalPool:
        if (in.one_in(4)) op.quant = quant();
        break;
      case OpKind::kMap:
        if (in.one_in(2)) op.scale = in.reals(few(c));
        if (in.one_in(2)) op.shift = in.reals(few(c));
        activation(op, c);
        if (in.coin()) op.inputs.push_back(any_value());
        op.join = static_cast<cpu::Join>(op.inputs.size() > 1 || in.one_in(32) ? in.within(0, 2) : 0);
        if (bytes ? !in.one_in(4) : in.one_in(4)) op.quant = quant();
        theta_bytes(op, c);
        break;
      case OpKind::kConcat:
        while (op.inputs.size() < 4 && in.coin()) op.inputs.push_back(any_value());
        break;
      case OpKind::kSelect:
        for (int64_t i = in.within(0, 8); i > 0; --i)
          op.index.push_back(in.one_in(32) ? in.size(-1, c) : in.within(0, std::max<int64_t>(c - 1, 0)));
        break;
      case OpKind::kQuantize:
        if (!in.one_in(32)) op.quant = quant();
        theta_bytes(op, c);
        break;
      case OpKind::kFlatten:
      case OpKind::kDequantize: break;
    }
    return op;
  }

  void write() {
    for (int64_t i = in.within(1, 2); i > 0; --i) {
      in.wild = false;
      try {
        program.input(in.one_in(4) ? ValueKind::kRows : ValueKind::kPlanes,
                      in.one_in(4) ? in.size(1, 40) : in.size(1, 6));
        wild = wild || in.wild;
      } catch (const std::invalid_argument&) {
      }
    }
    if (program.values().empty()) program.input(ValueKind::kPlanes, 3);
    for (int64_t i = in.within(1, 8); i > 0 && in.more(); --i) {
      in.wild = false;
      try {
        program.add(operation());
        wild = wild || in.wild;
      } catch (const std::invalid_argument&) {
      }
    }
    const auto n = static_cast<int>(program.values().size());
    for (int v = std::max(0, n - static_cast<int>(in.within(1, 3))); v < n; ++v) output(v);
    if (program.outputs().empty())  // what is bytes at the end
      for (int v = n - 1; v >= 0 && program.outputs().empty(); --v) output(v);
    program.finish();
  }
  void output(int v) {
    try {
      program.output(v);
    } catch (const std::invalid_argument&) {
    }
  }
};

bool is_large(const Program& program, const Plan& plan, int64_t batch) {
  int64_t n = plan.arena_floats();
  for (size_t v = 0; v < program.values().size(); ++v)
    if (program.values()[v].kind == ValueKind::kRows) n += plan.features(static_cast<int>(v));
  return n * std::max<int64_t>(batch, 1) > 2 * kLarge;
}

std::vector<std::vector<float>> call(const Program& program, const Plan& plan,
                                     const std::vector<std::vector<float>>& inputs, int64_t batch, int64_t threads) {
  Call c;
  c.batch = batch;
  for (const auto& x : inputs) c.inputs.push_back(x.data());
  std::vector<std::vector<float>> outputs;
  for (int v : program.outputs()) {
    const auto [k, h, w] = plan.shape(v);
    const int64_t each =
        program.values()[static_cast<size_t>(v)].kind == ValueKind::kRows ? plan.features(v) : k * h * w;
    outputs.emplace_back(static_cast<size_t>(batch * each));
  }
  for (auto& y : outputs) c.outputs.push_back(y.data());
  run(plan, program, c, threads, [&](int64_t n, const std::function<void(int64_t, int64_t)>& f) {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < n; ++i) others.emplace_back([&, i] { f(i, i + 1); });
    f(0, 1);
    for (std::thread& thread : others) thread.join();
  });
  return outputs;
}

void run_program(Input& in, Program& program, bool wild) {
  std::vector<std::array<int64_t, 2>> sizes;
  in.wild = false;
  for (int v : program.inputs())
    if (program.values()[static_cast<size_t>(v)].kind == ValueKind::kPlanes)
      sizes.push_back({in.size(1, 12), in.size(1, 12)});
  if (in.one_in(32)) sizes.push_back({1, 1});
  if (sizes.size() > 1 && in.coin()) sizes[1] = sizes[0];  // values that can be joined
  bool large = false;                                      // an image that is right, but slow
  for (const auto& size : sizes)
    large = large || (size[0] >= 1 && size[1] >= 1 && __int128{size[0]} * size[1] > 4096 &&
                      __int128{size[0]} * size[1] <= INT32_MAX / kLanes);
  if (wild || large) return;
  const int64_t batch = in.one_in(4) ? in.within(0, 20) : 1;
  std::vector<std::vector<float>> inputs;
  size_t planes = 0;
  for (int v : program.inputs()) {
    const Value& value = program.values()[static_cast<size_t>(v)];
    __int128 n = __int128{value.channels} * std::max<int64_t>(batch, 1);
    if (value.kind == ValueKind::kPlanes && planes < sizes.size()) {
      for (int64_t s : sizes[planes]) n *= std::clamp<int64_t>(s, 0, 5000);
      ++planes;
    }
    inputs.push_back(in.reals(static_cast<int64_t>(std::min<__int128>(n, 16 * kLarge))));
  }
  std::vector<const float*> example;
  if (in.one_in(4))
    for (const auto& x : inputs) example.push_back(x.data());
  const auto kernels = static_cast<Kernels>(in.within(0, 2));
  // Measured for no time at all: the first choice of each layer, but all that belongs to choosing.
  const auto plan = program.plan(sizes, example.empty() && !in.one_in(8) ? -1.0 : 1e-9, example, kernels);
  if (is_large(program, *plan, batch)) return;
  const auto alone = call(program, *plan, inputs, batch, 1);
  if (!in.one_in(8)) return;
  const auto together = call(program, *plan, inputs, batch, in.within(2, 3));
  for (size_t i = 0; i < alone.size(); ++i)
    if (!alone[i].empty() && std::memcmp(alone[i].data(), together[i].data(), alone[i].size() * sizeof(float)) != 0)
      __builtin_trap();  // results do not depend on the number of threads
  if (plan->report().empty() && !program.ops().empty()) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  fuzz::choose_isa(in);
  auto program = std::make_shared<Program>();
  Writer writer{in, *program};
  try {
    writer.write();
    const int64_t id = hold_program(program);
    const auto found = find_program(id);
    release_program(id);
    if (found != program || find_program(id)) __builtin_trap();
    run_program(in, *found, writer.wild);
  } catch (const std::invalid_argument&) {  // what a program refuses
  } catch (const std::length_error&) {      // and a plan, of sizes
  }
  return 0;
}
