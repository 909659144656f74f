#include <cmath>

#include "testing.h"

namespace secateur::test {

void test_sparse_dot(const Kernels& kernels) {
  Random random(6);
  std::normal_distribution<float> normal;
  constexpr int64_t inputs = 333;
  std::vector<float> x(inputs);
  for (float& v : x) v = normal(random);

  // One neuron for each length 0..70, one long one, and one that names the last input.
  std::vector<cpu::SparseTap> taps;
  std::vector<int64_t> start = {0};
  for (int64_t n : sizes()) {
    for (int64_t i = 0; i < n; ++i) taps.push_back({static_cast<int32_t>(random() % inputs), normal(random)});
    start.push_back(static_cast<int64_t>(taps.size()));
  }
  taps.push_back({static_cast<int32_t>(inputs - 1), 1.0f});
  start.push_back(static_cast<int64_t>(taps.size()));
  const int64_t neurons = static_cast<int64_t>(start.size()) - 1;
  std::vector<float> bias(neurons);
  for (float& v : bias) v = normal(random);

  const Buffer<float> in(x), biases(bias);
  const Buffer<cpu::SparseTap> stream(taps);
  const Buffer<int64_t> starts(start);
  for (bool has_bias : {false, true}) {
    const Buffer<float> y(neurons);
    for (auto [k0, k1] : {std::pair{int64_t{0}, neurons / 3}, {neurons / 3, neurons}})
      kernels.sparse_dot(
          {stream.data(), starts.data(), k0, k1, in.data(), has_bias ? biases.data() : nullptr, y.data()});
    for (int64_t k = 0; k < neurons; ++k) {
      double sum = has_bias ? bias[k] : 0.0, size = std::fabs(sum);
      for (int64_t t = start[k]; t < start[k + 1]; ++t) {
        const double product = double{taps[t].weight} * x[taps[t].offset];
        sum += product;
        size += std::fabs(product);
      }
      const double terms = double(start[k + 1] - start[k] + 1);
      check(std::fabs(y[k] - sum) <= 1.2e-7 * terms * size, "sparse_dot: neuron of ", terms - 1, " nonzeros: ", y[k],
            ", expected ", sum);
    }
  }
}

}  // namespace secateur::test
