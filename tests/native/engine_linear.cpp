#include <algorithm>

#include "engine_testing.h"

namespace secateur::test {
namespace {

void test_sparse_vector(const Kernels& kernels, Random& random, cpu::Act act, int64_t channels, int64_t width,
                        int chunks, bool with_bias) {
  const std::vector<float> x = normals(random, width * chunks), bias = normals(random, channels);
  const Buffer<float> in(x), biases(bias), y(channels), theta(channels);
  const cpu::Activation activation = random_activation(random, act, theta, channels);
  std::vector<double> sum(channels), size(channels), terms(channels);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    std::vector<cpu::SparseRow> rows;
    std::vector<uint16_t> offsets;
    std::vector<float> weights;
    for (int64_t k = 0; k < channels; ++k) {
      rows.push_back({static_cast<int32_t>(k), 0, static_cast<uint32_t>(offsets.size()), 0, chunk * width});
      for (int64_t n = static_cast<int64_t>(random() % 30); n > 0; --n, ++rows.back().count) {
        offsets.push_back(static_cast<uint16_t>(random() % width));
        weights.push_back(normals(random, 1)[0]);
        const double product = double{weights.back()} * x[chunk * width + offsets.back()];
        sum[k] += product;
        size[k] += std::fabs(product);
        terms[k] += 1;
      }
    }
    std::shuffle(rows.begin(), rows.end(), random);
    const Buffer<cpu::SparseRow> row_list(rows);
    const Buffer<uint16_t> offset_stream(offsets);
    const Buffer<float> weight_stream(weights);
    const int64_t half = channels / 3;
    for (const auto& [begin, end] : {std::pair{int64_t{0}, half}, {half, channels}}) {
      cpu::SparseVector layer{};
      layer.rows = row_list.data() + begin;
      layer.row_count = end - begin;
      layer.offsets = offset_stream.data();
      layer.weights = weight_stream.data();
      layer.x = in.data();
      layer.bias = with_bias ? biases.data() : nullptr;
      layer.y = y.data();
      layer.activation = activation;
      layer.first = chunk == 0;
      layer.last = chunk == chunks - 1;
      kernels.engine.sparse_vector(layer);
    }
  }
  for (int64_t k = 0; k < channels; ++k) {
    const double b = with_bias ? bias[k] : 0.0;
    check_activated(y[k], activation, k, sum[k] + b, 1.2e-7 * (terms[k] + 2) * (size[k] + std::fabs(b)),
                    "sparse_vector, chunks " + show(chunks) + ", row " + show(k));
  }
}

}  // namespace

void test_engine_linear(const Kernels& kernels) {
  Random random(14);
  for (const cpu::Act act : all_acts)
    for (const bool bias : {false, true}) {
      for (const int64_t channels : {0, 1, 16, 41})
        for (const int chunks : {1, 3}) test_sparse_vector(kernels, random, act, channels, 29, chunks, bias);
    }
}

}  // namespace secateur::test
