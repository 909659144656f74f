// What the CUDA fronts share on top of the checks of csrc/ops/common.h, which are the same for every device.
#pragma once

#include <on_device.h>

namespace secateur::cuda {

using namespace ops;  // checks, layouts, rows

// A launch that fails is not the caller's mistake: its message does not have the form of an argument's.
inline void check_launch(const char* op, Failure failure) {
  check(failure == nullptr, "the CUDA kernels of secateur::", op, " failed (or an earlier kernel did): ", failure);
}

inline Element element_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Element::kF32;
    case ScalarType::Double: return Element::kF64;
    case ScalarType::BFloat16: return Element::kBF16;
    default: return Element::kF16;
  }
}

// The mask in the order of memory, given in logical order, and back (contiguous layouts share the tensor).
Tensor in_memory_order(const char* op, const Tensor& mask, const Tensor& t, const Rows& rows, Layout layout,
                       Queue queue);
Tensor in_logical_order(const char* op, const Tensor& mask, const Tensor& t, const Rows& rows, Layout layout,
                        Queue queue);

}  // namespace secateur::cuda
