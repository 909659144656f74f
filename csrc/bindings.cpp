// secateur._host: what is not a tensor. A thin window onto libsecateur.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"

namespace py = pybind11;
using namespace secateur::cpu;

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
}
