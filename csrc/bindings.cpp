// secateur._host: everything that is not a tensor. Thin bindings to libsecateur.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"
#include "formats/sparse_layer.h"

namespace py = pybind11;
using namespace secateur::cpu;

void bind_program(py::module_& m);

namespace {

// A registered plan, released with this object.
class Plan {
 public:
  Plan(const py::array_t<uint8_t, py::array::c_style>& mask, const py::array_t<float, py::array::c_style>& values,
       const std::array<int64_t, 4>& shape, const std::array<int64_t, 2>& stride, const std::array<int64_t, 2>& padding,
       const std::array<int64_t, 2>& dilation, int64_t groups) {
    if (mask.ndim() != 2 || values.ndim() != 1) throw py::value_error("sparse layer: mask must be 2-d, values 1-d");
    secateur::ConvShape conv;
    conv.groups = groups;
    for (int i = 0; i < 2; ++i) {
      conv.stride[i] = stride[i];
      conv.padding[i] = padding[i];
      conv.dilation[i] = dilation[i];
    }
    id_ = secateur::make_layer({shape[0], shape[1], shape[2], shape[3]}, conv, mask.data(), mask.shape(0),
                               mask.shape(1), values.data(), values.size());
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() { secateur::release_layer(id_); }
  int64_t id() const { return id_; }

 private:
  int64_t id_;
};

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Which CPU this is, and which instruction set runs.";
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (int i = 0; i < kIsaCount; ++i)
      if (isa_available(static_cast<Isa>(i))) names.emplace_back(isa_name(static_cast<Isa>(i)));
    return names;
  });
  m.def("current_isa", [] { return std::string(kernels().name); });
  m.def("force_isa", [](const std::string& name) {
    for (int i = 0; i < kIsaCount; ++i) {
      const Isa isa = static_cast<Isa>(i);
      if (name == isa_name(isa) && isa_available(isa)) return force_isa(isa);
    }
    throw py::value_error("force_isa: this CPU has no instruction set named \"" + name + "\"");
  });
  m.def("reset_isa", &reset_isa);
  m.def("int8_kernels", [] { return std::string(int8_kernels().name); });
  m.def("dot_available", [](const std::string& name) {
    for (int i = 0; i < kIsaCount; ++i)
      if (name == isa_name(static_cast<Isa>(i))) return dot_available(static_cast<Isa>(i));
    throw py::value_error("dot_available: no instruction set is named \"" + name + "\"");
  });
  m.def("allow_dot", &allow_dot);
  m.def("dot_allowed", &dot_allowed);
  py::class_<Plan>(m, "SparseLayer", "A validated sparse layer, held by libsecateur; its id is the operators' `plan`.")
      .def(py::init<const py::array_t<uint8_t, py::array::c_style>&, const py::array_t<float, py::array::c_style>&,
                    const std::array<int64_t, 4>&, const std::array<int64_t, 2>&, const std::array<int64_t, 2>&,
                    const std::array<int64_t, 2>&, int64_t>(),
           py::arg("mask"), py::arg("values"), py::arg("shape"), py::arg("stride") = std::array<int64_t, 2>{1, 1},
           py::arg("padding") = std::array<int64_t, 2>{0, 0}, py::arg("dilation") = std::array<int64_t, 2>{1, 1},
           py::arg("groups") = 1)
      .def_property_readonly("id", &Plan::id);
  bind_program(m);
}
