// Checks that layers and windows share, for any arithmetic.
#pragma once

#include "engine/program/kind.h"
#include "engine/program/layers.h"

namespace secateur::engine {

constexpr int64_t kLargestGeometry = int64_t{1} << 20;  // of kernel size, stride, padding, dilation

inline void check_window(const Adding& op, const Window& w) {
  for (size_t i = 0; i < 2; ++i)
    for (int64_t size : {w.kernel[i], w.stride[i], w.dilation[i]})
      if (size < 1 || size > kLargestGeometry)
        op.refuse("kernel, stride and dilation must be between 1 and 2^20, got ", w.kernel[i], ", ", w.stride[i], ", ",
                  w.dilation[i]);
  for (int64_t p : w.padding)
    if (p < 0 || p > kLargestGeometry) op.refuse("padding must be between 0 and 2^20, got ", p);
}

template <class T>
void check_weights(const Adding& op, const WeightsOf<T>& weights, size_t rank) {
  if (weights.shape().size() != rank) op.refuse("weight must be ", rank, "-d, got ", weights.shape().size(), "-d");
  // Nonzeros of a row and channels are counted in 32 bits.
  const int64_t k = weights.neurons(), n = weights.per_neuron();
  if (k < 1 || n < 1) op.refuse("weight must have elements");
  if (k > INT32_MAX || n > INT32_MAX || weights.nonzeros() > UINT32_MAX)
    op.refuse("weight must have fewer than 2^31 rows and columns, and 2^32 nonzeros");
}

}  // namespace secateur::engine
