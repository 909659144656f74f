// The random planner: some seeds together choose every kind of kernel, every seed gives the same result, and one seed
// always makes the same choices.
#include <cmath>
#include <cstdlib>
#include <set>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "engine_networks.h"

namespace secateur::test {
namespace {

constexpr std::array<int64_t, 2> kSize{13, 17};
constexpr int64_t kBatch = 2;

// Sets SECATEUR_PLANNER while it lives (null: unset), then restores the old value.
class Planner {
 public:
  explicit Planner(const char* value) {
    if (const char* old = std::getenv(kName)) old_ = old, had_ = true;
    if (value) setenv(kName, value, 1);
    else unsetenv(kName);
  }
  ~Planner() {
    if (had_) setenv(kName, old_.c_str(), 1);
    else unsetenv(kName);
  }
  Planner(const Planner&) = delete;
  Planner& operator=(const Planner&) = delete;

 private:
  static constexpr const char* kName = "SECATEUR_PLANNER";
  std::string old_;
  bool had_ = false;
};

using Make = Network (*)(Random&);

struct Outcome {
  std::vector<float> outputs;
  std::vector<engine::StepReport> convs;
};

Outcome outcome(Make make, const char* planner, const std::vector<float>& x, engine::Kernels kernels) {
  const Planner set(planner);
  Random random(11);
  const Network network = make(random);
  network.program->prepare({kSize}, 0.0, {x.data()}, kernels);
  Outcome o;
  for (int64_t threads : {1, 3}) o.outputs = run_network(*network.program, x, kBatch, kSize, threads);
  for (const auto& step : network.program->describe({kSize}))
    if (step.kind == "conv2d") o.convs.push_back(step);
  return o;
}

std::vector<std::string> choices(const Outcome& o) {
  std::vector<std::string> all;
  for (const auto& step : o.convs) all.push_back(step.kernel + ", " + step.tile);
  return all;
}

void test_seeds(Make make, double tolerance, const std::set<std::string>& kinds) {
  Random random(12);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(kBatch * 5 * kSize[0] * kSize[1]));
  for (float& v : x) v = normal(random);
  const Outcome measured = outcome(make, nullptr, x, engine::Kernels::kFastest);
  double largest = 0;
  for (float v : measured.outputs) largest = std::max(largest, std::fabs(static_cast<double>(v)));
  check(largest > 0, "random_planner: all outputs are 0, the test says nothing");
  for (const auto& step : measured.convs)
    check(step.why.find("at random") == std::string::npos, "random_planner: switched off, it says: ", step.why);
  std::set<std::string> seen, tiles;
  for (int seed = 0; seed < 24; ++seed) {
    const std::string planner = "random:" + std::to_string(seed);
    const Outcome drawn = outcome(make, planner.c_str(), x, engine::Kernels::kFastest);
    check(drawn.outputs.size() == measured.outputs.size() && drawn.convs.size() == measured.convs.size(),
          "random_planner: ", planner, ": other outputs or steps");
    for (size_t i = 0; i < drawn.outputs.size(); ++i)
      check(std::fabs(drawn.outputs[i] - measured.outputs[i]) <= tolerance * largest, "random_planner: ", planner,
            ": output ", i, " is ", drawn.outputs[i], " instead of ", measured.outputs[i], "; ", choices(drawn)[0]);
    for (const auto& step : drawn.convs) {
      check(step.why.find("chosen at random") != std::string::npos, "random_planner: ", step.kernel,
            " is reported as: ", step.why);
      check(step.ms == 0 && step.dense_ms == 0 && step.active_ms == 0, "random_planner: times of what was not timed");
      seen.insert(step.kernel), tiles.insert(step.tile);
    }
    check(choices(outcome(make, planner.c_str(), x, engine::Kernels::kFastest)) == choices(drawn),
          "random_planner: ", planner, " picks otherwise the second time");
  }
  for (const auto& kind : kinds) check(seen.count(kind) == 1, "random_planner: no seed picks ", kind);
  for (const auto& kind : seen) check(kinds.count(kind) == 1, "random_planner: a seed picks ", kind);
  check(tiles.size() > 12, "random_planner: few tiles come up: ", tiles.size());
}

// Kernels that a test asks for are used.
void test_asked_for() {
  const std::vector<float> x(static_cast<size_t>(kBatch * 5 * kSize[0] * kSize[1]), 0.5f);
  for (int seed = 0; seed < 8; ++seed) {
    const std::string planner = "random:" + std::to_string(seed);
    for (const auto& step : outcome(real_network, planner.c_str(), x, engine::Kernels::kPlanes).convs)
      check(step.kernel != "active", "random_planner: lists where planes are asked for");
    for (const auto& step : outcome(real_network, planner.c_str(), x, engine::Kernels::kActive).convs)
      check(step.kernel == "active" || step.shape[1] == 1, "random_planner: ", step.kernel, " where lists can serve");
    for (const auto& step : outcome(byte_network, planner.c_str(), x, engine::Kernels::kBlocks).convs)
      check(step.kernel == "int8", "random_planner: ", step.kernel, " where blocks are asked for");
    for (const auto& step : outcome(byte_network, planner.c_str(), x, engine::Kernels::kBlocks4x4).convs)
      check(step.kernel == "int8 dense", "random_planner: ", step.kernel, " where blocks4x4 are asked for");
  }
}

void test_refusals() {
  const std::vector<float> x(static_cast<size_t>(kBatch * 5 * kSize[0] * kSize[1]), 0.5f);
  for (const char* wrong : {"fastest", "random:", "random:x", "random:1x", "random:-1", "randomly"}) {
    std::string what;
    try {
      outcome(real_network, wrong, x, engine::Kernels::kFastest);
    } catch (const std::invalid_argument& error) {
      what = error.what();
    }
    check(what.find(std::string("SECATEUR_PLANNER must be \"random\" or \"random:SEED\", got \"") + wrong) !=
              std::string::npos,
          "random_planner: ", wrong, ": ", what);
  }
}

}  // namespace

void test_random_planner(const Kernels&) {
  test_seeds(real_network, 1e-5, {"sparse", "dense", "active"});
  std::set<std::string> kinds{"int8", "int8 dense"};
  if (cpu::int8_kernels().depthwise_row) kinds.insert("int8 depthwise");
  test_seeds(byte_network, 0, kinds);
  test_asked_for();
  test_refusals();
}

}  // namespace secateur::test
