// Programs as a server uses them: many threads call one, while others make plans and register and release programs. The
// results have the same bits as on one thread. Under ThreadSanitizer this is the test for races.
#include <cmath>
#include <exception>
#include <thread>

#include "engine_networks.h"
#include "formats/sparse_layer.h"

namespace secateur::test {
namespace {

constexpr std::array<int64_t, 2> kSize{13, 17};
constexpr int64_t kBatch = 3;

std::vector<float> images(Random& random, int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(random);
  return x;
}

// Runs the bodies at once, each on its own thread, and rethrows an exception of any of them.
void at_once(const std::vector<std::function<void()>>& bodies) {
  std::vector<std::exception_ptr> errors(bodies.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < bodies.size(); ++i)
    threads.emplace_back([&, i] {
      try {
        bodies[i]();
      } catch (...) {
        errors[i] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& error : errors)
    if (error) std::rethrow_exception(error);
}

bool same_values(const std::vector<float>& got, const std::vector<float>& want) {
  return got.size() == want.size() && std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0;
}

void test_network(const Network& network, Random& random) {
  const auto x = images(random, kBatch * network.channels * kSize[0] * kSize[1]);
  const auto expected = run_network(*network.program, x, kBatch, kSize, 1);
  double size = 0;
  for (float v : expected) size += std::fabs(v);
  check(size > 0, "engine_program: ", network.name, ": all outputs are 0, the test says nothing");
  for (int64_t threads : {2, 3, 5}) {
    check(same_values(run_network(*network.program, x, kBatch, kSize, threads), expected),
          "engine_program: ", network.name, ": ", threads, " threads give another result than one");
  }
  // One image at a time: threads then share each layer.
  const int64_t image = network.channels * kSize[0] * kSize[1];
  for (int64_t n = 0; n < kBatch; ++n) {
    const std::vector<float> one(x.begin() + n * image, x.begin() + (n + 1) * image);
    check(same_values(run_network(*network.program, one, 1, kSize, 3), run_network(*network.program, one, 1, kSize, 1)),
          "engine_program: ", network.name, ": 3 threads on image ", n, " give another result than one");
  }

  const int64_t id = engine::register_program(network.program);
  std::vector<std::function<void()>> bodies;
  for (int64_t threads : {1, 2, 3})
    bodies.emplace_back([&, threads] {
      for (int i = 0; i < 4; ++i) {
        const auto program = engine::find_program(id);
        if (engine::find_program(INT64_MAX)) fail("engine_program: an id that was never given is found");
        if (!same_values(run_network(*program, x, kBatch, kSize, threads), expected))
          fail(std::string("engine_program: ") + network.name + ": calls at once give another result than one alone");
      }
    });
  bodies.emplace_back([&] {  // more sizes than a program keeps plans for; some of them measured
    const auto example = images(random, network.channels * 20 * 20);
    for (int64_t i = 1; i <= 12; ++i) network.program->prepare({{i, i + 1}}, i % 4 == 0 ? 1e-3 : 0.0, {example.data()});
    check(!network.program->describe({{3, 4}}).empty(), "engine_program: an empty report");
  });
  bodies.emplace_back([&] {
    for (int i = 0; i < 50; ++i) {
      const int64_t other = engine::register_program(network.program);
      if (other == id || engine::find_program(other) != network.program) fail("engine_program: an id was given twice");
      engine::release_program(other);
      if (engine::find_program(other)) fail("engine_program: a released program is still found");
    }
  });
  at_once(bodies);
  engine::release_program(id);
  engine::release_program(id);  // twice does nothing
}

// Sparse layers of single operators: the first thread that needs a plan or the linear form makes it.
void test_layers() {
  const std::vector<uint8_t> mask{0x0b, 0x05, 0xff};
  const std::vector<float> values(13, 1.5f);
  const int64_t id = make_layer({3, 2, 2, 2}, ConvShape{}, mask.data(), 3, 1, values.data(), 13);
  const std::function<void()> body = [&] {
    for (int64_t i = 0; i < 20; ++i) {
      const auto layer = find_layer(id);
      const auto plan = layer->plan("test", 3 + i % 6, 4, 4);
      if (plan->planes.out_height != 2 + i % 6 || layer->linear().taps.size() != 13) fail("sparse_layer: a wrong plan");
      const int64_t other = register_layer(layer);
      release_layer(other);
      if (find_layer(other)) fail("sparse_layer: a released layer is still found");
    }
  };
  at_once({body, body, body});
  release_layer(id);
}

}  // namespace

void test_engine_program(const Kernels&) {
  Random random(11);
  test_network(real_network(random), random);
  test_network(byte_network(random), random);
  test_layers();
}

}  // namespace secateur::test
