// Sparse linear layer, one input vector: the dot product of each neuron's nonzeros with their inputs.
//
// Each nonzero takes three loads (index, weight, input), and neurons share nothing: eight sums hide the latency.
#pragma once

#include "cpu/sparse.h"

namespace secateur::cpu {
namespace {

inline void sparse_dot(const SparseDot& layer) {
  for (int64_t k = layer.k_begin; k < layer.k_end; ++k) {
    float sum[8] = {};
    const SparseTap* tap = layer.taps + layer.start[k];
    const SparseTap* const end = layer.taps + layer.start[k + 1];
    for (; end - tap >= 8; tap += 8)
      for (int j = 0; j < 8; ++j) sum[j] = multiply_add(tap[j].weight, layer.x[tap[j].offset], sum[j]);
    for (int j = 0; tap < end; ++tap, ++j) sum[j] = multiply_add(tap->weight, layer.x[tap->offset], sum[j]);
    for (int half = 4; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) sum[j] += sum[j + half];
    layer.y[k] = sum[0] + (layer.bias ? layer.bias[k] : 0.0f);
  }
}

}  // namespace
}  // namespace secateur::cpu
