// Every operator, one line each, nothing else.
#include <torch/csrc/stable/library.h>

// clang-format off: one line each, however long.
STABLE_TORCH_LIBRARY(secateur, m) {
  m.def("mask_apply(Tensor weight, Tensor mask) -> Tensor");
  m.def("mask_apply_(Tensor(a!) weight, Tensor mask) -> ()");
  m.def("mask_apply_many_(Tensor(a!)[] weights, Tensor[] masks) -> ()");
  m.def("statistics_threshold(Tensor weight, float k, bool signed=False) -> (Tensor weight, Tensor mask, Tensor theta)");
  m.def("statistics_threshold_(Tensor(a!) weight, float k, bool signed=False) -> (Tensor mask, Tensor theta)");
  m.def("threshold_relu(Tensor x, Tensor theta, float? max=None) -> (Tensor y, Tensor mask)");
  m.def("threshold_relu_(Tensor(a!) x, Tensor theta, float? max=None) -> Tensor mask");
  m.def("mask_pack(Tensor keep) -> Tensor mask");
  m.def("mask_unpack(Tensor mask, int[] shape) -> Tensor keep");
  m.def("sparse_weight(Tensor mask, Tensor values, int[] shape) -> Tensor weight");
  m.def("sparse_values(Tensor weight, Tensor mask, int nonzeros) -> Tensor values");
  m.def("sparse_linear(Tensor x, Tensor mask, Tensor values, Tensor? bias, int plan=0) -> Tensor");
  m.def(
      "sparse_conv2d(Tensor x, Tensor mask, Tensor values, Tensor? bias, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, int groups, int plan=0) -> Tensor");
  m.def("engine_run(Tensor[] inputs, int program) -> Tensor[]");
  m.def("engine_step_times(Tensor[] inputs, int program) -> Tensor");
}
