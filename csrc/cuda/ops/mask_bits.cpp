// mask_pack, mask_unpack: bools to bits and back.
#include "common.h"

namespace secateur::cuda {
namespace {

Tensor pack(const Tensor& keep) {
  const char* op = "mask_pack";
  check(keep.scalar_type() == ScalarType::Bool, op, ": keep must be bool, got ", name(keep.scalar_type()));
  const Rows rows = rows_of(keep.sizes(), op);
  const OnDevice on(keep);
  Tensor mask = new_mask(keep, rows);
  const Tensor dense = torch::stable::contiguous(keep);
  check_launch(op, mask_pack(static_cast<const uint8_t*>(dense.const_data_ptr()), mask.mutable_data_ptr<uint8_t>(),
                             flat_view(rows.rows, rows.columns), on.queue()));
  return mask;
}

// The dispatcher hands lists over by value.
Tensor unpack(const Tensor& mask, std::vector<int64_t> sizes) {
  const char* op = "mask_unpack";
  const Sizes shape(sizes.data(), sizes.size());
  const Rows rows = rows_of(shape, op);
  check(mask.scalar_type() == ScalarType::Byte, op, ": mask must be uint8, got ", name(mask.scalar_type()));
  check(mask.dim() == 2 && mask.size(0) == rows.rows && mask.size(1) == rows.bytes(), op, ": mask must be [", rows.rows,
        ", ", rows.bytes(), "] for shape ", show(shape), ", got ", show(mask.sizes()));
  const OnDevice on(mask);
  Tensor keep = torch::stable::new_empty(mask, shape, ScalarType::Bool);
  const Tensor dense = torch::stable::contiguous(mask);
  check_launch(op, mask_unpack(dense.const_data_ptr<uint8_t>(), static_cast<uint8_t*>(keep.mutable_data_ptr()),
                               flat_view(rows.rows, rows.columns), on.queue()));
  return keep;
}

}  // namespace

SECATEUR_DEVICE_IMPL(m) {
  m.impl("mask_pack", TORCH_BOX(&pack));
  m.impl("mask_unpack", TORCH_BOX(&unpack));
}

}  // namespace secateur::cuda
