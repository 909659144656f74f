// What a front needs of the device: its guard, its stream, and the key that its operators are registered for. Fronts
// include <on_device.h> by name: the library gets this file, the tests one for emulated kernels on CPU tensors.
#pragma once

#include "cuda/kernels.h"
#include "ops/common.h"

#include <torch/csrc/stable/accelerator.h>

#define SECATEUR_DEVICE_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(secateur, CUDA, m)

namespace secateur::cuda {

void* current_stream(int device);  // a cudaStream_t

// Makes a tensor's device current; kernels go into the stream that torch has chosen there.
class OnDevice {
 public:
  explicit OnDevice(const ops::Tensor& t)
      : guard_(t.get_device_index()), queue_{t.get_device_index(), current_stream(t.get_device_index())} {}
  Queue queue() const { return queue_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Queue queue_;
};

}  // namespace secateur::cuda
