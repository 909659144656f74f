// The weights of a sparse layer, validated: nonzeros of each neuron in row-major order of [C/groups, R, S].
//
// Built from a checkpoint's form (bit mask, values in the mask's order), which may be untrusted. Everything is checked
// here, once, and never again in a kernel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace secateur {

struct WeightShape {
  int64_t neurons;      // K
  int64_t channels;     // C / groups (for a linear layer: C)
  int64_t rows = 1;     // R
  int64_t columns = 1;  // S
  int64_t per_neuron() const { return channels * rows * columns; }
};

struct SparseWeight {
  WeightShape shape;
  std::vector<int64_t> start;   // [K + 1]: neuron k owns nonzeros [start[k], start[k + 1])
  std::vector<uint32_t> index;  // [nnz]: position within the neuron, increasing
  std::vector<float> value;     // [nnz]
  int64_t nonzeros() const { return static_cast<int64_t>(value.size()); }
};

// Positions without values, for dtypes other than float32.
struct SparseIndex {
  std::vector<int64_t> start;
  std::vector<uint32_t> index;
};

// mask: [K, ceil(per_neuron / 8)]. Throws std::runtime_error, its message beginning with `op`, if the number of bits
// differs from the number of values, an unused bit is set, or the shape exceeds the index.
SparseIndex unpack_index(const std::string& op, const WeightShape& shape, const uint8_t* mask, int64_t mask_rows,
                         int64_t mask_bytes, int64_t count);
SparseWeight unpack_weight(const std::string& op, const WeightShape& shape, const uint8_t* mask, int64_t mask_rows,
                           int64_t mask_bytes, const float* values, int64_t count);

}  // namespace secateur
