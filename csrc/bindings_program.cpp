// secateur._host.Program: through it the Python graph front describes a segment to libsecateur.
#include <optional>

#include "bindings_attributes.h"
#include "engine/plan/held_program.h"
#include "engine/program/text.h"

namespace py = pybind11;
using namespace secateur;
using namespace secateur::engine;

namespace {

Kernels kernels_named(const std::string& name) {
  static constexpr std::pair<const char*, Kernels> names[] = {
      {"fastest", Kernels::kFastest}, {"planes", Kernels::kPlanes},
      {"active", Kernels::kActive},   {"active if sparse", Kernels::kActiveIfSparse},
      {"blocks", Kernels::kBlocks},   {"blocks4x4", Kernels::kBlocks4x4}};
  for (const auto& [known, kernels] : names)
    if (name == known) return kernels;
  throw py::value_error("engine: no kernels are named \"" + name + "\"");
}

// A program under construction. finish() registers a copy under an id.
class PyProgram {
 public:
  PyProgram() = default;
  PyProgram(const PyProgram&) = delete;
  PyProgram& operator=(const PyProgram&) = delete;
  ~PyProgram() {
    if (held_) release_program(id_);
  }

  int input_planes(int64_t channels) { return program_.input(ValueKind::kPlanes, channels); }
  int input_rows(int64_t features) { return program_.input(ValueKind::kRows, features); }
  int add(const std::string& kind, const std::vector<int>& inputs, const py::dict& attributes,
          const std::optional<std::string>& given_name) {
    const std::string name = given_name.value_or(kind);
    const Kind* found = find_kind(kind);
    if (!found) refuse(name, "no kind of operation is named \"", kind, "\"");
    return program_.add(*found, name, inputs, attributes_of(*found, name, attributes));
  }
  void output(int x) { program_.output(x); }
  void finish() {
    program_.finish();
    if (held_) return;
    held_ = std::make_shared<HeldProgram>(program_);
    id_ = register_program(held_);
  }
  int64_t id() const {
    held();
    return id_;
  }

  // Calls the library directly. The GIL is released so that the interpreter can run other threads.
  void prepare(const std::vector<Pair>& sizes, double budget, const std::vector<Floats>& example,
               const std::string& kernels) {
    const std::vector<const float*> images = checked_example(sizes, example);
    const Kernels which = kernels_named(kernels);
    HeldProgram& program = held();
    const py::gil_scoped_release release;
    program.prepare(sizes, budget, images, which);
  }

  // Why these sizes have no plan; nothing if they have one.
  std::optional<std::string> unplannable(const std::vector<Pair>& sizes) {
    HeldProgram& program = held();
    const py::gil_scoped_release release;
    try {
      program.plan(sizes, -1);
      return {};
    } catch (const Unplannable& error) {
      return error.what();
    } catch (const std::invalid_argument&) {  // wrong call: the operator has reported it
      return {};
    }
  }

  py::list describe(const std::vector<Pair>& sizes) {
    py::list all;
    for (const StepReport& s : held().describe(sizes)) {
      py::dict d;
      d["name"] = s.name;
      d["kind"] = s.kind;
      if (s.shape.empty()) d["shape"] = py::none();
      else d["shape"] = py::tuple(py::cast(s.shape));
      d["zeros"] = s.zeros;
      d["kernel"] = s.kernel;
      d["tile"] = s.tile;
      d["input_zeros"] = s.input_zeros;
      d["active_ms"] = s.active_ms;
      d["other_ms"] = s.other_ms;
      d["chunk"] = s.chunk;
      d["ms"] = s.ms;
      d["dense_ms"] = s.dense_ms;
      d["multiply_adds"] = s.multiply_adds;
      d["floor_ms"] = s.floor_ms;
      d["roofline"] = s.ms > 0 ? s.floor_ms / s.ms : 0.0;
      d["why"] = s.why;
      all.append(d);
    }
    return all;
  }

  // ---- as data ----

  bool same_as(const PyProgram& other) const { return program_ == other.program_; }
  std::unique_ptr<PyProgram> copy() const {
    auto made = std::make_unique<PyProgram>();
    made->program_ = program_;
    if (held_) made->finish();
    return made;
  }
  std::string text() const { return text_of(program_); }
  // The whole program: replaying the calls builds it again.
  py::dict dump() const {
    py::list inputs, ops;
    for (int v : program_.inputs()) {
      const Value& value = program_.values()[v];
      inputs.append(py::make_tuple(v, value.planes() ? "planes" : "rows", value.channels));
    }
    for (const Op& op : program_.ops()) {
      py::dict d;
      d["kind"] = op.kind->name;
      d["name"] = op.name;
      d["inputs"] = op.inputs;
      d["output"] = op.output;
      d["attributes"] = dict_of(*op.attributes);
      ops.append(d);
    }
    py::dict all;
    all["inputs"] = inputs;
    all["ops"] = ops;
    all["outputs"] = program_.outputs();
    return all;
  }

 private:
  HeldProgram& held() const {
    if (!held_) refuse("program", "the program is not finished");
    return *held_;
  }

  std::vector<const float*> checked_example(const std::vector<Pair>& sizes, const std::vector<Floats>& example) const {
    std::vector<const float*> images;
    if (!example.empty() && example.size() != program_.inputs().size())
      throw py::value_error("engine: example must have one array for each input, " +
                            std::to_string(program_.inputs().size()) + ", got " + std::to_string(example.size()));
    size_t planes = 0;
    for (size_t i = 0; i < example.size(); ++i) {
      const Value& value = program_.values()[program_.inputs()[i]];
      const Floats& x = example[i];
      bool right = x.ndim() == (value.planes() ? 4 : 2) && x.shape(0) >= 1 && x.shape(1) == value.channels;
      if (right && value.planes()) {
        right = planes < sizes.size() && x.shape(2) == sizes[planes][0] && x.shape(3) == sizes[planes][1];
        ++planes;
      }
      if (!right) throw py::value_error("engine: example " + std::to_string(i) + " must be as the input and sizes say");
      images.push_back(x.data());
    }
    return images;
  }

  Program program_;
  std::shared_ptr<HeldProgram> held_;  // a copy, made by finish()
  int64_t id_ = 0;
};

}  // namespace

void bind_program(py::module_& m);
void bind_program(py::module_& m) {
  py::register_exception<Unplannable>(m, "Unplannable", PyExc_ValueError);
  m.def("kinds", &kinds_in_python, "Kinds of operations: name -> (attributes that must be given, all with defaults).");
  py::class_<PyProgram>(m, "Program", "A segment of a network, held by libsecateur; its id is engine_run's `program`.")
      .def(py::init<>())
      .def("input_planes", &PyProgram::input_planes, py::arg("channels"))
      .def("input_rows", &PyProgram::input_rows, py::arg("features"))
      .def("add", &PyProgram::add, py::arg("kind"), py::arg("inputs"), py::arg("attributes") = py::dict(),
           py::arg("name") = py::none())
      .def("output", &PyProgram::output, py::arg("x"))
      .def("finish", &PyProgram::finish)
      .def("prepare", &PyProgram::prepare, py::arg("sizes"), py::arg("budget_s"),
           py::arg("example") = std::vector<Floats>{}, py::arg("kernels") = "fastest")
      .def("unplannable", &PyProgram::unplannable, py::arg("sizes"))
      .def("describe", &PyProgram::describe, py::arg("sizes"))
      .def("dump", &PyProgram::dump)
      .def("copy", &PyProgram::copy)
      .def("__str__", &PyProgram::text)
      .def("__eq__", &PyProgram::same_as, py::is_operator())
      .def_property_readonly("id", &PyProgram::id);
}
