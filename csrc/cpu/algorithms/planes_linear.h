// Linear layers with sparse weights on one input vector. Activations are applied to 16 results at a time, of any
// channels.
#pragma once

#include "planes_activation.h"

namespace secateur::cpu {
namespace {

// Buffers up to 16 sums and their channels for the activation.
struct Finished {
  const Activation& activation;
  float* y;
  alignas(64) float sum[16] = {}, theta[16] = {};
  int64_t channel[16];
  int count = 0;

  Finished(const Activation& a, float* to) : activation(a), y(to) {}
  Finished(const Finished&) = delete;

  void push(int64_t k, float value) {
    sum[count] = value;
    theta[count] = activation.act == Act::kThreshold ? activation.theta[k] : 0.0f;
    channel[count] = k;
    if (++count == 16) flush();
  }
  void flush() {
    activate(sum, 1, activation, load(theta));
    for (int i = 0; i < count; ++i) y[channel[i]] = sum[i];
    count = 0;
  }
};

// Each nonzero takes three loads (offset, weight, input), and rows share nothing: eight sums hide the latency.
inline float dot_nonzeros(const uint16_t* offset, const float* weight, int64_t count, const float* x) {
  float sum[8] = {};
  int64_t n = 0;
  for (; n + 8 <= count; n += 8)
    for (int j = 0; j < 8; ++j) sum[j] = multiply_add(weight[n + j], x[offset[n + j]], sum[j]);
  for (int j = 0; n < count; ++n, ++j) sum[j] = multiply_add(weight[n], x[offset[n]], sum[j]);
  for (int half = 4; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

inline void sparse_vector(const SparseVector& layer) {
  Finished finished(layer.activation, layer.y);
  for (int64_t i = 0; i < layer.row_count; ++i) {
    const SparseRow& row = layer.rows[i];
    const float start = !layer.first ? layer.y[row.channel] : layer.bias ? layer.bias[row.channel] : 0.0f;
    const float sum =
        start + dot_nonzeros(layer.offsets + row.begin, layer.weights + row.begin, row.count, layer.x + row.base);
    if (layer.last) finished.push(row.channel, sum);
    else layer.y[row.channel] = sum;
  }
  if (finished.count) finished.flush();
}

}  // namespace
}  // namespace secateur::cpu
