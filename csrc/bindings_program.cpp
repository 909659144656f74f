// secateur._host.Program: how the graph front describes a segment to libsecateur.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "engine/program/program.h"

namespace py = pybind11;
using namespace secateur;
using namespace secateur::engine;

namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Act = std::tuple<std::string, double, double, std::optional<Floats>>;

std::vector<float> values(const std::optional<Floats>& array, const char* argument) {
  if (!array) return {};
  if (array->ndim() != 1) throw py::value_error(std::string("engine: ") + argument + " must be 1-d");
  return {array->data(), array->data() + array->size()};
}

engine::Activation activation(const Act& act) {
  static const std::pair<const char*, cpu::Act> names[] = {
      {"none", cpu::Act::kNone},       {"clamp", cpu::Act::kClamp},         {"threshold", cpu::Act::kThreshold},
      {"leaky", cpu::Act::kLeaky},     {"hardswish", cpu::Act::kHardswish}, {"hardsigmoid", cpu::Act::kHardsigmoid},
      {"sigmoid", cpu::Act::kSigmoid}, {"silu", cpu::Act::kSilu},           {"gelu", cpu::Act::kGelu},
      {"tanh", cpu::Act::kTanh}};
  for (const auto& [name, kind] : names)
    if (std::get<0>(act) == name)
      return {kind, static_cast<float>(std::get<1>(act)), static_cast<float>(std::get<2>(act)),
              values(std::get<3>(act), "theta")};
  throw py::value_error("engine: no activation is named \"" + std::get<0>(act) + "\"");
}

cpu::Join join_of(const std::string& name) {
  if (name == "none") return cpu::Join::kNone;
  if (name == "add") return cpu::Join::kAdd;
  if (name == "multiply") return cpu::Join::kMultiply;
  throw py::value_error("engine: join must be \"none\", \"add\" or \"multiply\", got \"" + name + "\"");
}

template <class T>
std::shared_ptr<const WeightsOf<T>> weights_of(const py::array_t<T, py::array::c_style | py::array::forcecast>& weight,
                                               int rank) {
  if (weight.ndim() != rank) throw py::value_error("engine: weight must be " + std::to_string(rank) + "-d");
  const int64_t k = weight.shape(0);
  int64_t per_neuron = 1;
  for (int i = 1; i < rank; ++i) per_neuron *= weight.shape(i);
  return std::make_shared<const WeightsOf<T>>(weight.data(), k, per_neuron);
}

using Pair = std::array<int64_t, 2>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;
using SignedBytes = py::array_t<int8_t, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;
using Grid = std::pair<double, int64_t>;  // scale, zero point
using Limits = std::array<int64_t, 2>;

std::optional<Quant> quant_of(const std::optional<Grid>& grid) {
  if (!grid) return {};
  if (grid->second < 0 || grid->second > 255)
    throw py::value_error("engine: zero_point must be in [0, 255], got " + std::to_string(grid->second));
  return Quant{static_cast<float>(grid->first), static_cast<int32_t>(grid->second)};
}

template <class T>
std::vector<T> list_of(const py::array_t<T, py::array::c_style>& array, const char* argument) {
  if (array.ndim() != 1) throw py::value_error(std::string("engine: ") + argument + " must be 1-d");
  return {array.data(), array.data() + array.size()};
}

std::vector<uint8_t> bytes(const std::optional<Bytes>& array) {
  if (!array) return {};
  return list_of(*array, "theta");
}

class PyProgram {
 public:
  PyProgram() : program_(std::make_shared<Program>()), id_(hold_program(program_)) {}
  PyProgram(const PyProgram&) = delete;
  PyProgram& operator=(const PyProgram&) = delete;
  ~PyProgram() { release_program(id_); }
  int64_t id() const { return id_; }

  int input_planes(int64_t channels) { return program_->input(ValueKind::kPlanes, channels); }
  int input_rows(int64_t features) { return program_->input(ValueKind::kRows, features); }

  int conv2d(int x, const Floats& weight, const std::optional<Floats>& bias, const Pair& stride,
             const std::array<int64_t, 4>& padding, const Pair& dilation, int64_t groups, int residual, const Act& act,
             const std::string& name) {
    Op op = make(OpKind::kConv, name, {x}, act);
    op.weights = weights_of<float>(weight, 4);
    op.window = {{weight.shape(2), weight.shape(3)}, stride, dilation, padding};
    op.bias = values(bias, "bias");
    op.groups = groups;
    if (residual >= 0) op.inputs.push_back(residual);
    return program_->add(std::move(op));
  }

  int linear(int x, const Floats& weight, const std::optional<Floats>& bias, const Act& act, const std::string& name) {
    Op op = make(OpKind::kLinear, name, {x}, act);
    op.weights = weights_of<float>(weight, 2);
    op.bias = values(bias, "bias");
    return program_->add(std::move(op));
  }

  int max_pool(int x, const Pair& kernel, const Pair& stride, const Pair& padding, const Pair& dilation, bool ceil_mode,
               const std::string& name) {
    Op op = make(OpKind::kMaxPool, name, {x});
    op.window = {kernel, stride, dilation, {padding[0], padding[1], padding[0], padding[1]}};
    op.ceil_mode = ceil_mode;
    return program_->add(std::move(op));
  }

  int avg_pool(int x, const Pair& kernel, const Pair& stride, const Pair& padding, bool ceil_mode,
               bool count_include_pad, int64_t divisor, const std::string& name, const std::optional<Grid>& grid) {
    Op op = make(OpKind::kAvgPool, name, {x});
    op.quant = quant_of(grid);
    op.window = {kernel, stride, {1, 1}, {padding[0], padding[1], padding[0], padding[1]}};
    op.ceil_mode = ceil_mode;
    op.count_include_pad = count_include_pad;
    op.divisor = divisor;
    return program_->add(std::move(op));
  }

  int global_avg_pool(int x, const std::string& name, const std::optional<Grid>& grid) {
    Op op = make(OpKind::kGlobalPool, name, {x});
    op.quant = quant_of(grid);
    return program_->add(std::move(op));
  }

  int map(int x, const std::optional<Floats>& scale, const std::optional<Floats>& shift, const std::string& join,
          int other, const Act& act, const std::string& name, const std::optional<Grid>& grid,
          const std::optional<Bytes>& theta) {
    Op op = make(OpKind::kMap, name, {x}, act);
    op.quant = quant_of(grid);
    op.end.theta = bytes(theta);
    op.scale = values(scale, "scale");
    op.shift = values(shift, "shift");
    op.join = join_of(join);
    if (other >= 0) op.inputs.push_back(other);
    return program_->add(std::move(op));
  }

  int quantize(int x, const Grid& grid, const std::optional<Bytes>& theta, const std::string& name) {
    Op op = make(OpKind::kQuantize, name, {x});
    op.quant = quant_of(grid);
    op.end.theta = bytes(theta);
    return program_->add(std::move(op));
  }

  int dequantize(int x, const std::string& name) { return program_->add(make(OpKind::kDequantize, name, {x})); }

  int conv2d_int8(int x, const SignedBytes& weight, const Ints& bias, const Floats& multiplier, const Pair& stride,
                  const std::array<int64_t, 4>& padding, const Pair& dilation, int64_t groups, int residual,
                  double residual_multiplier, const std::optional<Grid>& grid, const Limits& limits,
                  const std::optional<Bytes>& theta, const Act& act, const std::string& name) {
    Op op = integer_layer(OpKind::kConv, x, weight, 4, bias, multiplier, grid, limits, theta, act, name);
    op.window = {{weight.shape(2), weight.shape(3)}, stride, dilation, padding};
    op.groups = groups;
    if (residual >= 0) op.inputs.push_back(residual);
    op.end.residual_multiplier = static_cast<float>(residual_multiplier);
    return program_->add(std::move(op));
  }

  int linear_int8(int x, const SignedBytes& weight, const Ints& bias, const Floats& multiplier,
                  const std::optional<Grid>& grid, const Limits& limits, const std::optional<Bytes>& theta,
                  const Act& act, const std::string& name) {
    return program_->add(
        integer_layer(OpKind::kLinear, x, weight, 2, bias, multiplier, grid, limits, theta, act, name));
  }

  int concat(const std::vector<int>& xs, const std::string& name) {
    return program_->add(make(OpKind::kConcat, name, xs));
  }

  int select_channels(int x, const std::vector<int64_t>& index, const std::string& name) {
    Op op = make(OpKind::kSelect, name, {x});
    op.index = index;
    return program_->add(std::move(op));
  }

  int flatten(int x) { return program_->add(make(OpKind::kFlatten, "flatten", {x})); }
  void output(int x) { program_->output(x); }
  void finish() { program_->finish(); }

  // The library itself is asked, with the interpreter free to run other threads.
  void prepare(int64_t /*batch*/, const std::vector<Pair>& sizes, double budget, const std::vector<Floats>& example,
               const std::string& kernels) {
    std::vector<const float*> images;
    if (!example.empty() && example.size() != program_->inputs().size())
      throw py::value_error("engine: example must have one array for each input, " +
                            std::to_string(program_->inputs().size()) + ", got " + std::to_string(example.size()));
    size_t planes = 0;
    for (size_t i = 0; i < example.size(); ++i) {
      const Value& value = program_->values()[program_->inputs()[i]];
      const Floats& x = example[i];
      const bool is_planes = value.kind == ValueKind::kPlanes;
      bool right = x.ndim() == (is_planes ? 4 : 2) && x.shape(0) >= 1 && x.shape(1) == value.channels;
      if (right && is_planes) {
        right = planes < sizes.size() && x.shape(2) == sizes[planes][0] && x.shape(3) == sizes[planes][1];
        ++planes;
      }
      if (!right) throw py::value_error("engine: example " + std::to_string(i) + " must be as the input and sizes say");
      images.push_back(x.data());
    }
    const Kernels which = kernels == "fastest"  ? Kernels::kFastest
                          : kernels == "planes" ? Kernels::kPlanes
                          : kernels == "active" ? Kernels::kActive
                          : kernels == "blocks" ? Kernels::kBlocks
                          : kernels == "squares"
                              ? Kernels::kSquares
                              : throw py::value_error("engine: no kernels are named \"" + kernels + "\"");
    const py::gil_scoped_release release;
    prepare_program(*program_, sizes, budget, images, which);
  }

  py::list describe(int64_t /*batch*/, const std::vector<Pair>& sizes) {
    py::list all;
    for (const ProgramStep& s : describe_program(*program_, sizes)) {
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

 private:
  static Op integer_layer(OpKind kind, int x, const SignedBytes& weight, int rank, const Ints& bias,
                          const Floats& multiplier, const std::optional<Grid>& grid, const Limits& limits,
                          const std::optional<Bytes>& theta, const Act& act, const std::string& name) {
    Op op = make(kind, name, {x}, act);
    op.bytes = weights_of<int8_t>(weight, rank);
    op.quant = quant_of(grid);
    op.end.bias = list_of(bias, "bias");
    op.end.multiplier = values(multiplier, "multiplier");
    for (int64_t limit : limits)
      if (limit < 0 || limit > 255)
        throw py::value_error("engine: limits must be in [0, 255], got " + std::to_string(limit));
    op.end.lo = static_cast<uint8_t>(limits[0]);
    op.end.hi = static_cast<uint8_t>(limits[1]);
    op.end.theta = bytes(theta);
    return op;
  }

  static Op make(OpKind kind, const std::string& name, std::vector<int> inputs,
                 const Act& act = {"none", 0, 0, std::nullopt}) {
    Op op;
    op.kind = kind;
    op.name = name;
    op.inputs = std::move(inputs);
    op.activation = activation(act);
    return op;
  }

  std::shared_ptr<Program> program_;
  int64_t id_;
};

}  // namespace

void bind_program(py::module_& m);
void bind_program(py::module_& m) {
  py::class_<PyProgram>(m, "Program", "A segment of a network, held by libsecateur; its id is engine_run's `program`.")
      .def(py::init<>())
      .def("input_planes", &PyProgram::input_planes, py::arg("channels"))
      .def("input_rows", &PyProgram::input_rows, py::arg("features"))
      .def("conv2d", &PyProgram::conv2d, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("stride"),
           py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("residual"), py::arg("act"),
           py::arg("name"))
      .def("linear", &PyProgram::linear, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("act"),
           py::arg("name"))
      .def("max_pool", &PyProgram::max_pool, py::arg("x"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
           py::arg("dilation"), py::arg("ceil_mode"), py::arg("name"))
      .def("avg_pool", &PyProgram::avg_pool, py::arg("x"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
           py::arg("ceil_mode"), py::arg("count_include_pad"), py::arg("divisor"), py::arg("name"),
           py::arg("grid") = py::none())
      .def("global_avg_pool", &PyProgram::global_avg_pool, py::arg("x"), py::arg("name"), py::arg("grid") = py::none())
      .def("map", &PyProgram::map, py::arg("x"), py::arg("scale"), py::arg("shift"), py::arg("join"), py::arg("other"),
           py::arg("act"), py::arg("name"), py::arg("grid") = py::none(), py::arg("theta") = py::none())
      .def("quantize", &PyProgram::quantize, py::arg("x"), py::arg("grid"), py::arg("theta"), py::arg("name"))
      .def("dequantize", &PyProgram::dequantize, py::arg("x"), py::arg("name"))
      .def("conv2d_int8", &PyProgram::conv2d_int8, py::arg("x"), py::arg("weight"), py::arg("bias"),
           py::arg("multiplier"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
           py::arg("residual"), py::arg("residual_multiplier"), py::arg("grid"), py::arg("limits"), py::arg("theta"),
           py::arg("act"), py::arg("name"))
      .def("linear_int8", &PyProgram::linear_int8, py::arg("x"), py::arg("weight"), py::arg("bias"),
           py::arg("multiplier"), py::arg("grid"), py::arg("limits"), py::arg("theta"), py::arg("act"), py::arg("name"))
      .def("concat", &PyProgram::concat, py::arg("xs"), py::arg("name"))
      .def("select_channels", &PyProgram::select_channels, py::arg("x"), py::arg("index"), py::arg("name"))
      .def("flatten", &PyProgram::flatten, py::arg("x"))
      .def("output", &PyProgram::output, py::arg("x"))
      .def("finish", &PyProgram::finish)
      .def("prepare", &PyProgram::prepare, py::arg("batch"), py::arg("sizes"), py::arg("budget_s"),
           py::arg("example") = std::vector<Floats>{}, py::arg("kernels") = "fastest")
      .def("describe", &PyProgram::describe, py::arg("batch"), py::arg("sizes"))
      .def_property_readonly("id", &PyProgram::id);
}
