#include "sparse_weight.h"

#include <bit>
#include <stdexcept>

namespace secateur {
namespace {

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

}  // namespace

SparseIndex unpack_index(const std::string& op, const WeightShape& shape, const uint8_t* mask, int64_t mask_rows,
                         int64_t mask_bytes, int64_t count) {
  int64_t area, per_neuron;
  if (shape.neurons < 0 || shape.neurons > INT32_MAX || shape.channels < 0 || shape.rows < 1 || shape.columns < 1 ||
      __builtin_mul_overflow(shape.rows, shape.columns, &area) ||
      __builtin_mul_overflow(shape.channels, area, &per_neuron) || per_neuron > INT32_MAX)
    fail(op + ": weight shape must be positive, with at most 2^31 - 1 neurons of at most 2^31 - 1 weights");
  const int64_t bytes = (per_neuron + 7) / 8;
  if (mask_rows != shape.neurons || mask_bytes != bytes)
    fail(op + ": mask must be [" + std::to_string(shape.neurons) + ", " + std::to_string(bytes) + "], got [" +
         std::to_string(mask_rows) + ", " + std::to_string(mask_bytes) + "]");

  int64_t set = 0;
  for (int64_t i = 0; i < mask_rows * bytes; ++i) set += std::popcount(mask[i]);
  if (set != count)
    fail(op + ": values must have one element for each of the " + std::to_string(set) + " bits of mask, got " +
         std::to_string(count));

  SparseIndex weight;
  weight.start.reserve(shape.neurons + 1);
  weight.index.reserve(count);
  weight.start.push_back(0);
  for (int64_t k = 0; k < shape.neurons; ++k) {
    const uint8_t* row = mask + k * bytes;
    for (int64_t byte = 0; byte < bytes; ++byte)
      for (uint32_t bits = row[byte]; bits != 0; bits &= bits - 1)
        weight.index.push_back(static_cast<uint32_t>(byte * 8 + std::countr_zero(bits)));
    if (static_cast<int64_t>(weight.index.size()) > weight.start.back() && weight.index.back() >= per_neuron)
      fail(op + ": mask must have its unused bits clear, got one set in neuron " + std::to_string(k));
    weight.start.push_back(static_cast<int64_t>(weight.index.size()));
  }
  return weight;
}

SparseWeight unpack_weight(const std::string& op, const WeightShape& shape, const uint8_t* mask, int64_t mask_rows,
                           int64_t mask_bytes, const float* values, int64_t count) {
  SparseIndex where = unpack_index(op, shape, mask, mask_rows, mask_bytes, count);
  return {shape, std::move(where.start), std::move(where.index), std::vector<float>(values, values + count)};
}

}  // namespace secateur
