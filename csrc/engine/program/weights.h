// A layer's weights as plans read them: the nonzeros alone if that is smaller, otherwise all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace secateur::engine {

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>  // float, or int8_t for quantized layers
class WeightsOf {
 public:
  // dense, of this shape, copied. A neuron is an index of dim 0.
  __attribute__((visibility("default"))) WeightsOf(const T* dense, std::vector<int64_t> shape);

  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t neurons() const { return neurons_; }
  int64_t per_neuron() const { return per_neuron_; }
  int64_t nonzeros() const { return nonzeros_; }
  double zeros() const {
    const double n = static_cast<double>(neurons_) * static_cast<double>(per_neuron_);
    return n == 0 ? 0 : 1 - static_cast<double>(nonzeros_) / n;
  }

  // Calls f(index, value) for the nonzeros of one neuron, in ascending order.
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

  // All weights, including zeros.
  std::vector<T> dense() const {
    std::vector<T> all(static_cast<size_t>(neurons_ * per_neuron_), T{0});
    for (int64_t k = 0; k < neurons_; ++k) for_each(k, [&](int64_t i, T w) { all[k * per_neuron_ + i] = w; });
    return all;
  }
  // Compares bits: a program with a NaN equals its own copy.
  bool operator==(const WeightsOf& other) const {
    return shape_ == other.shape_ && same_bits(dense_, other.dense_) && start_ == other.start_ &&
           index_ == other.index_ && same_bits(value_, other.value_);
  }

 private:
  std::vector<int64_t> shape_;
  int64_t neurons_, per_neuron_, nonzeros_ = 0;
  std::vector<T> dense_;
  std::vector<int64_t> start_;
  std::vector<uint32_t> index_;
  std::vector<T> value_;
};

using Weights = WeightsOf<float>;
using ByteWeights = WeightsOf<int8_t>;

}  // namespace secateur::engine
