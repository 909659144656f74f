// A layer's weights as the plans read them: the nonzeros alone where that is smaller, all of them otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace secateur::engine {

template <class T>  // float, or int8_t of quantized layers
class WeightsOf {
 public:
  // dense [neurons][per_neuron], copied.
  __attribute__((visibility("default"))) WeightsOf(const T* dense, int64_t neurons, int64_t per_neuron);

  int64_t neurons() const { return neurons_; }
  int64_t per_neuron() const { return per_neuron_; }
  int64_t nonzeros() const { return nonzeros_; }
  double zeros() const {
    const double n = static_cast<double>(neurons_) * static_cast<double>(per_neuron_);
    return n == 0 ? 0 : 1 - static_cast<double>(nonzeros_) / n;
  }

  // f(index, value) for the nonzeros of one neuron, ascending.
  template <class F>
  void for_each(int64_t neuron, F&& f) const {
    if (!dense_.empty()) {
      const T* w = dense_.data() + neuron * per_neuron_;
      for (int64_t i = 0; i < per_neuron_; ++i)
        if (w[i] != 0) f(i, w[i]);
    } else {
      for (int64_t i = start_[neuron]; i < start_[neuron + 1]; ++i) f(int64_t{index_[i]}, value_[i]);
    }
  }

 private:
  int64_t neurons_, per_neuron_, nonzeros_ = 0;
  std::vector<T> dense_;
  std::vector<int64_t> start_;
  std::vector<uint32_t> index_;
  std::vector<T> value_;
};

using Weights = WeightsOf<float>;
using ByteWeights = WeightsOf<int8_t>;

}  // namespace secateur::engine
