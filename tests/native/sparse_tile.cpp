#include <cmath>

#include "testing.h"

namespace secateur::test {
namespace {

// One call of sparse_tile[T] with everything random: taps, chunks, runs; each buffer exactly as large as it must be.
struct Case {
  int64_t tile;  // T
  int64_t neurons, inputs, chunks, scale;
  bool bias, dense;  // dense: one stretch of output, without runs
};

std::vector<cpu::StoreRun> random_runs(Random& random, int64_t positions, int64_t* width) {
  std::vector<cpu::StoreRun> runs;
  int64_t to = 0;
  for (int64_t at = static_cast<int64_t>(random() % 3); at < positions; at += static_cast<int64_t>(random() % 3)) {
    const int64_t room = std::min<int64_t>(positions - at, 16);
    const int64_t count = random() % 2 ? room : 1 + static_cast<int64_t>(random() % room);
    runs.push_back({static_cast<int32_t>(at), static_cast<int32_t>(count), to});
    at += count;
    to += count;
  }
  *width = to;
  return runs;
}

void test_case(const Kernels& kernels, Random& random, const Case& c) {
  const int64_t positions = 16 * c.tile;
  std::normal_distribution<float> normal;
  // An offset names a place from which a whole tile can be read; in a linear layer (scale > 1) places are rows.
  const int64_t places = c.scale > 1 ? c.inputs : 37;
  std::vector<float> x((places - 1) * c.scale + positions);
  for (float& v : x) v = normal(random);
  std::vector<float> bias(c.neurons);
  for (float& v : bias) v = normal(random);

  std::vector<cpu::SparseTap> taps;
  std::vector<std::vector<int64_t>> bounds(2 * c.chunks);
  for (int64_t chunk = 0; chunk < c.chunks; ++chunk)
    for (int64_t k = 0; k < c.neurons; ++k) {
      bounds[2 * chunk].push_back(static_cast<int64_t>(taps.size()));
      for (int64_t n = static_cast<int64_t>(random() % 12); n > 0; --n)  // often none at all
        taps.push_back({static_cast<int32_t>(random() % places), normal(random)});
      bounds[2 * chunk + 1].push_back(static_cast<int64_t>(taps.size()));
    }
  int64_t width;
  std::vector<cpu::StoreRun> runs = random_runs(random, positions, &width);
  if (c.dense) {
    width = 1 + static_cast<int64_t>(random() % positions);
    runs = {{0, static_cast<int32_t>(width), 0}};
  }

  const Buffer<float> planes(x), biases(bias), y(c.neurons * width), partial(c.chunks > 1 ? c.neurons * positions : 0);
  const Buffer<cpu::SparseTap> stream(taps);
  const Buffer<cpu::StoreRun> stores(runs);
  for (int64_t chunk = 0; chunk < c.chunks; ++chunk) {
    const Buffer<int64_t> start(bounds[2 * chunk]), end(bounds[2 * chunk + 1]);
    // Neurons in two calls, as two threads would.
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t k0 = half ? c.neurons / 2 : 0, k1 = half ? c.neurons : c.neurons / 2;
      cpu::SparseTile t{};
      t.taps = stream.data();
      t.start = start.data();
      t.end = end.data();
      t.k_begin = k0;
      t.k_end = k1;
      t.x = planes.data();
      t.scale = c.scale;
      t.bias = c.bias ? biases.data() : nullptr;
      t.partial = c.chunks > 1 ? partial.data() + k0 * positions : nullptr;
      t.first = chunk == 0;
      t.last = chunk == c.chunks - 1;
      t.runs = stores.data();
      t.run_count = static_cast<int64_t>(runs.size());
      t.dense_count = c.dense ? runs[0].count : 0;
      t.y = y.data();
      t.y_stride = width;
      kernels.sparse_tile[c.tile](t);
    }
  }

  for (int64_t k = 0; k < c.neurons; ++k)
    for (const cpu::StoreRun& run : runs)
      for (int64_t i = 0; i < run.count; ++i) {
        double sum = c.bias ? bias[k] : 0.0, size = std::fabs(sum);
        int64_t terms = 1;
        for (int64_t chunk = 0; chunk < c.chunks; ++chunk)
          for (int64_t t = bounds[2 * chunk][k]; t < bounds[2 * chunk + 1][k]; ++t, ++terms) {
            const double product = double{taps[t].weight} * x[taps[t].offset * c.scale + run.from + i];
            sum += product;
            size += std::fabs(product);
          }
        const float got = y[k * width + run.to + i];
        // Each of the products and sums rounds once: terms * 2^-24 of their sizes, twice where they are not fused.
        check(std::fabs(got - sum) <= 1.2e-7 * double(terms) * size, "sparse_tile[", c.tile, "]: neuron ", k,
              ", position ", run.from + i, ", chunks ", c.chunks, ", scale ", c.scale, ": ", got, ", expected ", sum);
      }
}

}  // namespace

void test_sparse_tile(const Kernels& kernels) {
  check(kernels.max_tile >= 1 && kernels.max_tile <= cpu::kMaxTile, "max_tile is ", kernels.max_tile);
  for (int t = 0; t <= cpu::kMaxTile; ++t)
    check((kernels.sparse_tile[t] != nullptr) == (t >= 1 && t <= kernels.max_tile), "sparse_tile[", t, "] of ",
          kernels.max_tile);
  Random random(5);
  for (int64_t tile = 1; tile <= kernels.max_tile; ++tile)
    for (int64_t chunks : {1, 3})
      for (bool bias : {false, true}) {
        for (int repeat = 0; repeat < 4; ++repeat)
          test_case(kernels, random, {tile, 9, 21, chunks, 16 * tile, bias, true});
        test_case(kernels, random, {tile, 9, 0, chunks, 1, bias, false});
        test_case(kernels, random, {tile, 9, 21, chunks, 16 * tile, bias, false});
        test_case(kernels, random, {tile, 1, 1, chunks, 16 * tile, bias, false});
      }
}

}  // namespace secateur::test
