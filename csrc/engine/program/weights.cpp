#include "weights.h"

#include <functional>
#include <numeric>
#include <utility>

namespace secateur::engine {

template <class T>
WeightsOf<T>::WeightsOf(const T* dense, std::vector<int64_t> shape)
    : shape_(std::move(shape)),
      neurons_(shape_.at(0)),
      per_neuron_(std::accumulate(shape_.begin() + 1, shape_.end(), int64_t{1}, std::multiplies<>())) {
  const int64_t count = neurons_ * per_neuron_;
  for (int64_t i = 0; i < count; ++i) nonzeros_ += dense[i] != 0;
  // An index takes four bytes beside its value.
  if (nonzeros_ * static_cast<int64_t>(sizeof(T) + 4) > count * static_cast<int64_t>(sizeof(T))) {
    dense_.assign(dense, dense + count);
    return;
  }
  start_.reserve(static_cast<size_t>(neurons_ + 1));
  index_.reserve(static_cast<size_t>(nonzeros_));
  value_.reserve(static_cast<size_t>(nonzeros_));
  start_.push_back(0);
  for (int64_t k = 0; k < neurons_; ++k) {
    for (int64_t i = 0; i < per_neuron_; ++i)
      if (const T w = dense[k * per_neuron_ + i]; w != 0) {
        index_.push_back(static_cast<uint32_t>(i));
        value_.push_back(w);
      }
    start_.push_back(static_cast<int64_t>(index_.size()));
  }
}

template class WeightsOf<float>;
template class WeightsOf<int8_t>;

}  // namespace secateur::engine
