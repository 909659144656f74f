// Code that the operators of sparse layers share.
#pragma once

#include <memory>
#include <optional>

#include "common.h"
#include "formats/sparse_layer.h"

namespace secateur::ops {

void check_float_cpu(const char* op, const char* argument, const Tensor& t);

// The dense weight [K, C/groups, R, S] (or [K, C]) in the values' dtype: float64, float16 and bfloat16 run on it
// through torch's own layers.
Tensor dense_weight(const char* op, const Tensor& mask, const Tensor& values, Sizes sizes);

// [K, ...] in the packed forms: neurons, and all other dims as channels.
WeightShape flat_shape(const char* op, Sizes sizes);
void check_packed(const char* op, const Tensor& mask, const Tensor& values);

// The layer registered as `plan`, checked against the arguments; plan = 0: one made from them for this call.
std::shared_ptr<const SparseLayer> layer_of(const char* op, int64_t plan, const Tensor& mask, const Tensor& values,
                                            const WeightShape& shape, const ConvShape& conv);

// bias, if given, must be [K] of this dtype on the CPU.
void check_bias(const char* op, const std::optional<Tensor>& bias, int64_t neurons, ScalarType dtype);
// Contiguous bias [K] or null.
const float* bias_data(const char* op, const std::optional<Tensor>& bias, int64_t neurons);

}  // namespace secateur::ops
