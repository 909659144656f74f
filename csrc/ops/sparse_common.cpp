#include "sparse_common.h"

namespace secateur::ops {

void check_float_cpu(const char* op, const char* argument, const Tensor& t) {
  check(t.is_cpu(), op, ": ", argument, " must be on the CPU");
  check(t.scalar_type() == ScalarType::Float, op, ": ", argument, " must be float32, got ", name(t.scalar_type()));
}

void check_packed(const char* op, const Tensor& mask, const Tensor& values) {
  check(mask.scalar_type() == ScalarType::Byte && mask.is_cpu(), op, ": mask must be uint8 on the CPU, got ",
        name(mask.scalar_type()));
  check(mask.dim() == 2, op, ": mask must be [K, bytes], got ", show(mask.sizes()));
  check(values.is_cpu() && values.dim() == 1, op, ": values must be [nnz] on the CPU, got ", show(values.sizes()));
}

WeightShape flat_shape(const char* op, Sizes sizes) {
  const Rows view = rows_of(sizes, op);
  return {view.rows, view.columns};
}

std::shared_ptr<const SparseLayer> layer_of(const char* op, int64_t plan, const Tensor& mask, const Tensor& values,
                                            const WeightShape& shape, const ConvShape& conv) {
  if (plan != 0) {
    std::shared_ptr<const SparseLayer> layer = find_layer(plan);
    check(layer != nullptr, op, ": plan must be 0 or a live plan, got ", plan);
    const WeightShape& held = layer->weight().shape;
    check(held.neurons == shape.neurons && held.channels == shape.channels && held.rows == shape.rows &&
              held.columns == shape.columns && layer->conv() == conv,
          op, ": plan ", plan, " must have been made for the same layer: its weight is [", held.neurons, ", ",
          held.channels, ", ", held.rows, ", ", held.columns, "], got [", shape.neurons, ", ", shape.channels, ", ",
          shape.rows, ", ", shape.columns, "], or stride, padding, dilation or groups differ");
    return layer;
  }
  check_packed(op, mask, values);
  check_float_cpu(op, "values", values);
  const Tensor bits = torch::stable::contiguous(mask), dense = torch::stable::contiguous(values);
  SparseWeight weight = unpack_weight(op, shape, bits.const_data_ptr<uint8_t>(), bits.size(0), bits.size(1),
                                      dense.const_data_ptr<float>(), dense.numel());
  return std::make_shared<const SparseLayer>(std::move(weight), conv);
}

void check_bias(const char* op, const std::optional<Tensor>& bias, int64_t neurons, ScalarType dtype) {
  if (!bias) return;
  check(bias->is_cpu(), op, ": bias must be on the CPU");
  check(bias->scalar_type() == dtype, op, ": bias must be ", name(dtype), ", got ", name(bias->scalar_type()));
  check(bias->dim() == 1 && bias->size(0) == neurons && bias->is_contiguous(), op, ": bias must be a contiguous [",
        neurons, "], got ", show(bias->sizes()));
}

const float* bias_data(const char* op, const std::optional<Tensor>& bias, int64_t neurons) {
  check_bias(op, bias, neurons, ScalarType::Float);
  if (!bias) return nullptr;
  return bias->const_data_ptr<float>();
}

}  // namespace secateur::ops
