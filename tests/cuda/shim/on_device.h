// Fronts on CPU tensors: no guard, no stream, and operators of a namespace of their own, so that a test process can
// have them beside the real ones. See csrc/cuda/device/on_device.h.
#pragma once

#include "cuda/kernels.h"
#include "ops/common.h"

#define SECATEUR_DEVICE_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(secateur_emulated, CPU, m)

namespace secateur::cuda {

class OnDevice {
 public:
  explicit OnDevice(const ops::Tensor&) {}
  Queue queue() const { return {0, nullptr}; }
};

}  // namespace secateur::cuda
