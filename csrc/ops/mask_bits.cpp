// mask_pack, mask_unpack: bools to bits and back.
#include "common.h"
#include "cpu/dispatch.h"

namespace secateur::ops {
namespace {

Tensor mask_pack(const Tensor& keep) {
  check(keep.scalar_type() == ScalarType::Bool, "mask_pack: keep must be bool, got ", name(keep.scalar_type()));
  const Rows view = rows_of(keep.sizes(), "mask_pack");
  Tensor mask = new_mask(keep, view);
  const Tensor dense = torch::stable::contiguous(keep);
  const auto pack = cpu::kernels().mask_pack;
  const uint8_t* from = static_cast<const uint8_t*>(dense.const_data_ptr());
  uint8_t* to = mask.mutable_data_ptr<uint8_t>();
  parallel_rows(
      view,
      [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r) pack(from + r * view.columns, to + r * view.bytes(), view.columns);
      },
      [&](int64_t row, int64_t begin, int64_t end) {
        pack(from + row * view.columns + begin, to + row * view.bytes() + begin / 8, end - begin);
      });
  return mask;
}

Tensor mask_unpack(const Tensor& mask, Sizes shape) {
  const Rows view = rows_of(shape, "mask_unpack");
  check(mask.scalar_type() == ScalarType::Byte, "mask_unpack: mask must be uint8, got ", name(mask.scalar_type()));
  check(mask.dim() == 2 && mask.size(0) == view.rows && mask.size(1) == view.bytes(), "mask_unpack: mask must be [",
        view.rows, ", ", view.bytes(), "] for shape ", show(shape), ", got ", show(mask.sizes()));
  Tensor keep = torch::stable::new_empty(mask, shape, ScalarType::Bool);
  const Tensor dense = torch::stable::contiguous(mask);
  const auto unpack = cpu::kernels().mask_unpack;
  const uint8_t* from = dense.const_data_ptr<uint8_t>();
  uint8_t* to = static_cast<uint8_t*>(keep.mutable_data_ptr());
  parallel_rows(
      view,
      [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r) unpack(from + r * view.bytes(), to + r * view.columns, view.columns);
      },
      [&](int64_t row, int64_t begin, int64_t end) {
        unpack(from + row * view.bytes() + begin / 8, to + row * view.columns + begin, end - begin);
      });
  return keep;
}

// The dispatcher passes lists by value.
Tensor mask_unpack_boxed(const Tensor& mask, std::vector<int64_t> shape) {
  return mask_unpack(mask, Sizes(shape.data(), shape.size()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(secateur, CPU, m) {
  m.impl("mask_pack", TORCH_BOX(&mask_pack));
  m.impl("mask_unpack", TORCH_BOX(&mask_unpack_boxed));
}

}  // namespace secateur::ops
