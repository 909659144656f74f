#include "engine_networks.h"

#include <algorithm>
#include <limits>
#include <thread>

#include "engine/kinds/table.h"

namespace secateur::test {
namespace {

using engine::Activation;
using engine::Int8ConvAttributes;
using engine::Int8Layer;
using engine::Int8LinearAttributes;
using engine::NoAttributes;
using engine::Program;
using engine::Quant;
using engine::ValueKind;
using engine::Window;

const Window k3x3{{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}};
const Window k3x3_by_2{{3, 3}, {2, 2}, {1, 1}, {1, 1, 1, 1}};
const Window k1x1{};

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

// Adds layers to a program.
struct Layers {
  Random& random;
  Program program{};

  template <class A = NoAttributes>
  int add(const char* kind, std::vector<int> inputs, A attributes = {}) {
    return program.add(engine::kind_named(kind), kind, std::move(inputs), std::move(attributes));
  }
  std::shared_ptr<engine::HeldProgram> finished() {
    program.finish();
    return std::make_shared<engine::HeldProgram>(program);
  }

  std::vector<float> reals(int64_t n, double zeros) {
    std::normal_distribution<float> normal;
    return some<float>(random, n, zeros, [&] { return normal(random); });
  }
  int conv(std::vector<int> inputs, int64_t k, int64_t c, const Window& window, double zeros, int64_t groups = 1) {
    engine::ConvAttributes a;
    const auto [r, s] = window.kernel;
    a.weights = std::make_shared<const engine::Weights>(reals(k * c / groups * r * s, zeros).data(),
                                                        std::vector{k, c / groups, r, s});
    a.bias = reals(k, 0);
    a.window = window;
    a.groups = groups;
    a.activation = relu();
    return add("conv2d", std::move(inputs), std::move(a));
  }
  int linear(int x, int64_t k, int64_t c, double zeros) {
    engine::LinearAttributes a;
    a.weights = std::make_shared<const engine::Weights>(reals(k * c, zeros).data(), std::vector{k, c});
    return add("linear", {x}, std::move(a));
  }
  int max_pool(int x, const Window& window) {
    engine::MaxPoolAttributes a;
    a.window = window;
    return add("max_pool", {x}, a);
  }

  // int8 with zero point 0, so that a pad is a zero and biases are small.
  void fill(Int8Layer& a, const std::vector<int64_t>& shape, double zeros) {
    int64_t n = 1;
    for (size_t i = 1; i < shape.size(); ++i) n *= shape[i];
    std::uniform_int_distribution<int> weight(-127, 127), bias(-1000, 1000);
    a.bytes = std::make_shared<const engine::ByteWeights>(
        some<int8_t>(random, shape[0] * n, zeros, [&] { return static_cast<int8_t>(weight(random)); }).data(), shape);
    for (int64_t o = 0; o < shape[0]; ++o) a.bias.push_back(bias(random));
    a.multiplier.assign(static_cast<size_t>(shape[0]), 1.0f / static_cast<float>(20 * n));
    a.quant = Quant{0.05f, 0};
  }
  int byte_conv(std::vector<int> inputs, int64_t k, int64_t c, const Window& window, double zeros, int64_t groups = 1) {
    Int8ConvAttributes a;
    fill(a, {k, c / groups, window.kernel[0], window.kernel[1]}, zeros);
    a.window = window;
    a.groups = groups;
    if (inputs.size() > 1) a.residual_multiplier = 0.5f;
    return add("conv2d_int8", std::move(inputs), std::move(a));
  }
  int byte_linear(int x, int64_t k, int64_t c, double zeros, bool real) {
    Int8LinearAttributes a;
    fill(a, {k, c}, zeros);
    if (real) a.quant.reset();
    return add("linear_int8", {x}, std::move(a));
  }
};

}  // namespace

Network real_network(Random& random) {
  Layers layers{random};
  const int x = layers.program.input(ValueKind::kPlanes, 5);
  const int a = layers.conv({x}, 20, 5, k3x3, 0.5);
  const int b = layers.conv({a, a}, 20, 20, k3x3, 0.9);
  const int c = layers.max_pool(b, k3x3_by_2);
  const int d = layers.conv({c}, 20, 20, k3x3, 0.0, 20);  // depthwise
  const int e = layers.add("concat", {c, d});
  const int f = layers.conv({e}, 33, 40, k1x1, 0.1);
  layers.program.output(f);
  const int g = layers.add("global_avg_pool", {f}, engine::GlobalPoolAttributes());
  layers.program.output(layers.linear(layers.linear(g, 64, 33, 0.8), 7, 64, 0.0));
  return {"real values", layers.finished(), 5};
}

Network byte_network(Random& random) {
  Layers layers{random};
  const int x = layers.program.input(ValueKind::kPlanes, 5);
  engine::QuantizeAttributes quantize;
  quantize.quant = Quant{0.02f, 0};
  const int q = layers.add("quantize", {x}, quantize);
  const int a = layers.byte_conv({q}, 18, 5, k3x3, 0.5);
  const int b = layers.byte_conv({a, a}, 18, 18, k3x3, 0.9);
  const int c = layers.max_pool(b, k3x3_by_2);
  const int d = layers.byte_conv({c}, 18, 18, k3x3, 0.0, 18);
  const int e = layers.add("concat", {c, d});
  const int f = layers.byte_conv({e}, 21, 36, k1x1, 0.1);
  layers.program.output(layers.add("dequantize", {f}));
  engine::GlobalPoolAttributes mean;
  mean.quant = Quant{0.05f, 0};
  const int g = layers.add("global_avg_pool", {f}, mean);
  layers.program.output(layers.byte_linear(layers.byte_linear(g, 40, 21, 0.8, false), 7, 40, 0.0, true));
  return {"bytes", layers.finished(), 5};
}

void on_threads(int64_t n, int64_t threads, const std::function<void(int64_t, int64_t)>& f) {
  const int64_t parts = std::min(n, threads);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < parts; ++i) others.emplace_back([&, i] { f(n * i / parts, n * (i + 1) / parts); });
  if (parts > 0) f(0, n / parts);
  for (std::thread& thread : others) thread.join();
}

std::vector<float> run_network(engine::HeldProgram& held, const std::vector<float>& x, int64_t batch,
                               std::array<int64_t, 2> size, int64_t threads) {
  const auto plan = held.plan({size}, -1);
  const Program& program = held.program();
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
