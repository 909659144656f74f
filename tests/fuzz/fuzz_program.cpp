// Bytes as a program: operations over values, mostly fitting each other; then its plan, and calls of it.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "engine/kinds/table.h"
#include "engine/plan/held_program.h"
#include "engine/program/text.h"
#include "engine/run/run.h"
#include "input.h"

using namespace secateur;
using namespace secateur::engine;
using secateur::fuzz::Input;

namespace {

// Numbers in flight, in a value or in a layer's weights: larger ones are right, but slow.
constexpr int64_t kLarge = 1 << 16;

// Draws an operation's attributes by their types, whatever its kind: a new kind is drawn as soon as it is in the table.
// Lists belong to channels, those of the output where there are weights; what is drawn mostly fits.
struct Draw {
  Input& in;
  const Value& x;
  bool bytes;          // what comes in, or nearly always
  int64_t channels;    // of what lists belong to
  int64_t groups = 1;  // attributes that weights depend on come before them

  void operator()(const char* /*name*/, bool* to) { *to = in.coin(); }
  void operator()(const char* name, int64_t* to) {
    if (std::string_view(name) != "groups") {
      *to = in.one_in(8) ? in.size(0, 9) : *to;
      return;
    }
    *to = groups = in.one_in(4) ? (in.coin() ? x.channels : in.size(1, 4)) : 1;
  }
  void operator()(const char* /*name*/, float* to) { *to = in.one_in(4) ? in.real() : 0.5f; }
  void operator()(const char* name, Pair* to) {
    const std::string_view what = name;
    for (int64_t& size : *to)
      size = what == "kernel" ? in.size(1, 4) : what == "stride" ? in.size(1, 3) : in.one_in(4) ? in.size(1, 3) : 1;
    if (what == "kernel") kernel = *to;
  }
  void operator()(const char* /*name*/, Sides* to) {
    for (size_t i = 0; i < 2; ++i) {
      (*to)[i] = in.size(0, kernel[i] > 1 && kernel[i] < 9 ? kernel[i] / 2 : 0);
      (*to)[i + 2] = in.one_in(8) ? in.size(0, 4) : (*to)[i];
    }
  }
  void operator()(const char* /*name*/, std::vector<int64_t>* to) {
    for (int64_t i = in.within(0, 8); i > 0; --i)
      to->push_back(in.one_in(32) ? in.size(-1, x.channels) : in.within(0, std::max<int64_t>(x.channels - 1, 0)));
  }
  void operator()(const char* name, std::vector<float>* to) {
    const bool factors = std::string_view(name) == "multiplier";
    if (!factors && in.coin()) return;
    *to = in.reals(few(channels));
    const float scale = !factors || in.one_in(8) ? 1.0f : 0.01f;
    for (float& f : *to) f = factors ? std::fabs(f) * scale : f;
  }
  void operator()(const char* /*name*/, std::vector<int32_t>* to) {
    for (int64_t i = few(channels); i > 0; --i) to->push_back(static_cast<int32_t>(in.next() % 4096) - 2048);
    if (in.one_in(16) && !to->empty()) to->front() = in.coin() ? INT32_MAX : INT32_MIN;
  }
  void operator()(const char* /*name*/, std::vector<uint8_t>* to) {
    if (in.one_in(4)) to->assign(static_cast<size_t>(few(channels)), static_cast<uint8_t>(in.within(0, 255)));
  }
  void operator()(const char* /*name*/, cpu::Binary* to) {
    *to = static_cast<cpu::Binary>(inputs > 1 || in.one_in(32) ? in.within(0, 2) : 0);
  }
  void operator()(const char* /*name*/, Activation* to) {
    to->act = static_cast<cpu::Act>(in.within(0, static_cast<int64_t>(cpu::Act::kTanh)));
    if (bytes && ends_in_bytes && !in.one_in(16)) to->act = cpu::Act::kNone;
    to->lo = in.one_in(4) ? in.real() : 0;
    to->hi = in.one_in(4) ? in.real() : 6;
    if (to->act != cpu::Act::kThreshold && !in.one_in(32)) return;
    to->theta = in.reals(few(channels));
    if (!in.one_in(8))
      for (float& t : to->theta) t = std::fabs(t);
  }
  void operator()(const char* /*name*/, std::optional<Quant>* to) {
    if (!(bytes ? !in.one_in(4) : in.one_in(4))) return;
    ends_in_bytes = true;
    Quant q{in.one_in(8) ? in.real() : static_cast<float>(in.within(1, 64)) / 256, 0};
    q.zero_point = static_cast<int32_t>(in.one_in(32) ? in.within(-1, 300) : in.within(0, 255));
    *to = q;
  }
  void operator()(const char* /*name*/, Limits* to) {
    to->lo = static_cast<uint8_t>(in.one_in(4) ? in.within(0, 255) : 0);
    to->hi = static_cast<uint8_t>(in.one_in(4) ? in.within(0, 255) : 255);
  }
  template <class T>
  void operator()(const char* /*name*/, std::shared_ptr<const WeightsOf<T>>* to) {
    // Features that the image size decides: a guess that comes true for small images.
    int64_t k = in.one_in(4) ? in.within(1, 70) : in.within(1, 9);
    const int64_t c = x.channels >= 0 ? few(x.channels) : in.within(1, 64);
    std::vector<int64_t> shape{k, c};
    if (x.planes() != in.one_in(32)) {
      if (groups > 1 && groups < 50) shape[0] = groups * in.within(1, 2);
      if (groups > 0) shape[1] = c / groups;
      for (int64_t& size : kernel) shape.push_back(size = in.within(1, 3));
    }
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    if (count > kLarge) throw std::invalid_argument("too large for here");
    channels = shape[0];
    const std::vector<float> dense = in.reals(count);
    std::vector<T> values;
    for (float v : dense) {
      if constexpr (std::is_same_v<T, float>) values.push_back(v);
      else values.push_back(std::isfinite(v) ? static_cast<T>(std::clamp(v, -2.0f, 1.98f) * 64) : T{-128});
    }
    *to = std::make_shared<const WeightsOf<T>>(values.data(), shape);
  }

  // As many as there should be, or nearly.
  int64_t few(int64_t n) {
    n = std::clamp<int64_t>(n, 0, kLarge);
    return std::clamp<int64_t>(in.one_in(32) ? n + in.within(-1, 1) : n, 0, kLarge);
  }

  Pair kernel{1, 1};
  size_t inputs = 1;
  bool ends_in_bytes = false;
};

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

  void operation() {
    const auto all = kinds();
    const Kind& kind = all[static_cast<size_t>(in.within(0, static_cast<int64_t>(all.size()) - 1))];
    std::vector<int> inputs{any_value()};
    while (inputs.size() < std::min<size_t>(kind.most_inputs, 4) && in.coin()) inputs.push_back(any_value());
    auto attributes = kind.attributes();
    const int v = inputs[0];
    if (v >= 0 && v < static_cast<int>(program.values().size())) {
      const Value x = program.values()[static_cast<size_t>(v)];
      Draw draw{in, x, in.one_in(32) ? in.coin() : x.quant.has_value(), x.channels};
      draw.inputs = inputs.size();
      for (const AttributeSlot& slot : attributes->slots())
        std::visit([&](auto* to) { draw(slot.name, to); }, slot.value);
    }
    program.add(kind, "op", inputs, std::move(attributes));
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
        operation();
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

void run_program(Input& in, HeldProgram& held, bool wild) {
  const Program& program = held.program();
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
  const auto plan = held.plan(sizes, example.empty() && !in.one_in(8) ? -1.0 : 1e-9, example, kernels);
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
  Program program;
  Writer writer{in, program};
  try {
    writer.write();
    if (!(Program(program) == program)) __builtin_trap();
    if (in.one_in(16) && text_of(program).empty()) __builtin_trap();
    const auto held = std::make_shared<HeldProgram>(program);
    const int64_t id = register_program(held);
    const auto found = find_program(id);
    release_program(id);
    if (found != held || find_program(id)) __builtin_trap();
    run_program(in, *found, writer.wild);
  } catch (const std::invalid_argument&) {  // what a program refuses
  } catch (const Unplannable&) {            // and a plan, of sizes
  } catch (const std::length_error&) {      // and a call, of batches
  }
  return 0;
}
