// sparse_weight, sparse_values: packed nonzeros to a dense weight and back; each is the other's backward.
#include "sparse_common.h"

namespace secateur::ops {
namespace {

SparseIndex index_of(const char* op, const Tensor& mask, const WeightShape& shape, int64_t nonzeros) {
  // Rows without columns take no memory in a mask, but would in an index.
  if (shape.per_neuron() == 0 && nonzeros == 0 && mask.size(0) == shape.neurons && mask.size(1) == 0) return {};
  const Tensor bits = torch::stable::contiguous(mask);
  return unpack_index(op, shape, bits.const_data_ptr<uint8_t>(), bits.size(0), bits.size(1), nonzeros);
}

// Calls body(nonzero, position in the weight) for every nonzero.
template <class Body>
void for_each_nonzero(const SparseIndex& where, const WeightShape& shape, const Body& body) {
  if (where.index.empty()) return;
  const int64_t columns = shape.per_neuron();
  parallel_for(0, shape.neurons, kGrain / (columns + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      for (int64_t i = where.start[k]; i < where.start[k + 1]; ++i) body(i, k * columns + where.index[i]);
  });
}

// Only bits move, so the element's size is all that matters.
template <class Move>
void by_element(const Tensor& t, const Move& move) {
  switch (t.element_size()) {
    case 2: return move(uint16_t{});
    case 4: return move(uint32_t{});
    default: return move(uint64_t{});
  }
}

Tensor sparse_weight(const Tensor& mask, const Tensor& values, std::vector<int64_t> shape) {
  return dense_weight("sparse_weight", mask, values, {shape.data(), shape.size()});
}

Tensor sparse_values(const Tensor& weight, const Tensor& mask, int64_t nonzeros) {
  const char* op = "sparse_values";
  check_floating(op, "weight", weight);
  check(nonzeros >= 0, op, ": nonzeros must be >= 0, got ", nonzeros);
  check_packed(op, mask, torch::stable::new_empty(weight, {0}));
  const WeightShape shape = flat_shape(op, weight.sizes());
  // Checks the mask against `nonzeros` before anything of that size is allocated.
  const SparseIndex where = index_of(op, mask, shape, nonzeros);
  const Tensor dense = torch::stable::contiguous(weight);
  Tensor values = torch::stable::new_empty(weight, {nonzeros});
  by_element(dense, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(dense.const_data_ptr());
    T* to = static_cast<T*>(values.mutable_data_ptr());
    for_each_nonzero(where, shape, [&](int64_t i, int64_t at) { to[i] = from[at]; });
  });
  return values;
}

}  // namespace

Tensor dense_weight(const char* op, const Tensor& mask, const Tensor& values, Sizes sizes) {
  check_packed(op, mask, values);
  check_floating(op, "values", values);
  const WeightShape shape = flat_shape(op, sizes);
  const SparseIndex where = index_of(op, mask, shape, values.numel());
  const Tensor dense = torch::stable::contiguous(values);
  Tensor weight = torch::stable::new_zeros(values, sizes);
  by_element(dense, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(dense.const_data_ptr());
    T* to = static_cast<T*>(weight.mutable_data_ptr());
    for_each_nonzero(where, shape, [&](int64_t i, int64_t at) { to[at] = from[i]; });
  });
  return weight;
}

STABLE_TORCH_LIBRARY_IMPL(secateur, CPU, m) {
  m.impl("sparse_weight", TORCH_BOX(&sparse_weight));
  m.impl("sparse_values", TORCH_BOX(&sparse_values));
}

}  // namespace secateur::ops
