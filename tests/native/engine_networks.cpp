#include "engine_networks.h"

#include <algorithm>
#include <limits>
#include <thread>

#include "engine/plan/plan.h"

namespace secateur::test {
namespace {

using engine::Activation;
using engine::Op;
using engine::OpKind;
using engine::Program;
using engine::ValueKind;
using engine::Window;

const Window k3x3{{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}};
const Window k3x3_by_2{{3, 3}, {2, 2}, {1, 1}, {1, 1, 1, 1}};
const Window k1x1{};

Op make(OpKind kind, const char* name, std::vector<int> inputs) {
  Op op;
  op.kind = kind;
  op.name = name;
  op.inputs = std::move(inputs);
  return op;
}

Activation relu() {
  Activation a;
  a.act = cpu::Act::kClamp;
  a.hi = std::numeric_limits<float>::infinity();
  return a;
}

// Weights of one layer: n of them, of which about `zeros` are 0.
template <class T, class Draw>
std::vector<T> some(Random& random, int64_t n, double zeros, const Draw& draw) {
  std::bernoulli_distribution zero(zeros);
  std::vector<T> w(static_cast<size_t>(n));
  for (T& x : w) x = zero(random) ? T{0} : draw();
  return w;
}

// Adds layers to a program of real values.
struct Layers {
  Random& random;
  Program& program;

  std::vector<float> reals(int64_t n, double zeros) {
    std::normal_distribution<float> normal;
    return some<float>(random, n, zeros, [&] { return normal(random); });
  }
  int conv(std::vector<int> inputs, int64_t k, int64_t c, const Window& window, double zeros, int64_t groups = 1) {
    Op op = make(OpKind::kConv, "conv", std::move(inputs));
    const int64_t n = c / groups * window.kernel[0] * window.kernel[1];
    op.weights = std::make_shared<const engine::Weights>(reals(k * n, zeros).data(), k, n);
    op.bias = reals(k, 0);
    op.window = window;
    op.groups = groups;
    op.activation = relu();
    return program.add(std::move(op));
  }
  int linear(int x, int64_t k, int64_t c, double zeros) {
    Op op = make(OpKind::kLinear, "linear", {x});
    op.weights = std::make_shared<const engine::Weights>(reals(k * c, zeros).data(), k, c);
    return program.add(std::move(op));
  }
  int pool(OpKind kind, int x, const Window& window) {
    Op op = make(kind, "pool", {x});
    op.window = window;
    return program.add(std::move(op));
  }

  // Bytes: zero point 0, so that a pad is a zero and biases are small.
  Op bytes(OpKind kind, std::vector<int> inputs, int64_t k, int64_t n, double zeros) {
    Op op = make(kind, "int8", std::move(inputs));
    std::uniform_int_distribution<int> weight(-127, 127), bias(-1000, 1000);
    op.bytes = std::make_shared<const engine::ByteWeights>(
        some<int8_t>(random, k * n, zeros, [&] { return static_cast<int8_t>(weight(random)); }).data(), k, n);
    for (int64_t o = 0; o < k; ++o) op.end.bias.push_back(bias(random));
    op.end.multiplier.assign(static_cast<size_t>(k), 1.0f / static_cast<float>(20 * n));
    op.quant = engine::Quant{0.05f, 0};
    return op;
  }
  int byte_conv(std::vector<int> inputs, int64_t k, int64_t c, const Window& window, double zeros, int64_t groups = 1) {
    const bool joins = inputs.size() > 1;
    Op op = bytes(OpKind::kConv, std::move(inputs), k, c / groups * window.kernel[0] * window.kernel[1], zeros);
    op.window = window;
    op.groups = groups;
    if (joins) op.end.residual_multiplier = 0.5f;
    return program.add(std::move(op));
  }
};

}  // namespace

Network real_network(Random& random) {
  auto program = std::make_shared<Program>();
  Layers layers{random, *program};
  const int x = program->input(ValueKind::kPlanes, 5);
  const int a = layers.conv({x}, 20, 5, k3x3, 0.5);
  const int b = layers.conv({a, a}, 20, 20, k3x3, 0.9);
  const int c = layers.pool(OpKind::kMaxPool, b, k3x3_by_2);
  const int d = layers.conv({c}, 20, 20, k3x3, 0.0, 20);  // depthwise
  const int e = program->add(make(OpKind::kConcat, "concat", {c, d}));
  const int f = layers.conv({e}, 33, 40, k1x1, 0.1);
  program->output(f);
  const int g = program->add(make(OpKind::kGlobalPool, "mean", {f}));
  program->output(layers.linear(layers.linear(g, 64, 33, 0.8), 7, 64, 0.0));
  program->finish();
  return {"real values", program, 5};
}

Network byte_network(Random& random) {
  auto program = std::make_shared<Program>();
  Layers layers{random, *program};
  const int x = program->input(ValueKind::kPlanes, 5);
  Op quantize = make(OpKind::kQuantize, "quantize", {x});
  quantize.quant = engine::Quant{0.02f, 0};
  const int q = program->add(std::move(quantize));
  const int a = layers.byte_conv({q}, 18, 5, k3x3, 0.5);
  const int b = layers.byte_conv({a, a}, 18, 18, k3x3, 0.9);
  const int c = layers.pool(OpKind::kMaxPool, b, k3x3_by_2);
  const int d = layers.byte_conv({c}, 18, 18, k3x3, 0.0, 18);
  const int e = program->add(make(OpKind::kConcat, "concat", {c, d}));
  const int f = layers.byte_conv({e}, 21, 36, k1x1, 0.1);
  program->output(program->add(make(OpKind::kDequantize, "dequantize", {f})));
  Op mean = make(OpKind::kGlobalPool, "mean", {f});
  mean.quant = engine::Quant{0.05f, 0};
  const int g = program->add(std::move(mean));
  const int h = program->add(layers.bytes(OpKind::kLinear, {g}, 40, 21, 0.8));
  Op last = layers.bytes(OpKind::kLinear, {h}, 7, 40, 0.0);
  last.quant.reset();
  program->output(program->add(std::move(last)));
  program->finish();
  return {"bytes", program, 5};
}

void on_threads(int64_t n, int64_t threads, const std::function<void(int64_t, int64_t)>& f) {
  const int64_t parts = std::min(n, threads);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < parts; ++i) others.emplace_back([&, i] { f(n * i / parts, n * (i + 1) / parts); });
  if (parts > 0) f(0, n / parts);
  for (std::thread& thread : others) thread.join();
}

std::vector<float> run_network(Program& program, const std::vector<float>& x, int64_t batch,
                               std::array<int64_t, 2> size, int64_t threads) {
  const auto plan = program.plan({size}, -1);
  const Buffer<float> in(x);
  std::vector<std::unique_ptr<Buffer<float>>> outputs;
  engine::Call call;
  call.batch = batch;
  call.inputs = {in.data()};
  for (int v : program.outputs()) {
    const auto [c, h, w] = plan->shape(v);
    const int64_t each = program.values()[v].kind == ValueKind::kRows ? plan->features(v) : c * h * w;
    outputs.push_back(std::make_unique<Buffer<float>>(static_cast<size_t>(batch * each)));
    call.outputs.push_back(outputs.back()->data());
  }
  engine::run(*plan, program, call, threads,
              [&](int64_t n, const std::function<void(int64_t, int64_t)>& f) { on_threads(n, threads, f); });
  std::vector<float> all;
  for (const auto& output : outputs) {
    const std::vector<float> values = output->values();
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

}  // namespace secateur::test
