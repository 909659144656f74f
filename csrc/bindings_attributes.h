// Conversion of operation attributes between Python and the engine's types, for every kind.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string_view>

#include "engine/kinds/table.h"

namespace secateur::engine {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
using Floats = Array<float>;

// The operation and attribute that an error names.
struct Place {
  const std::string& op;
  const char* attribute;
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    engine::refuse(op, attribute, parts...);
  }
};

template <class T>
T cast(py::handle value, const Place& place, const char* what) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    place.refuse(" must be ", what, ", got ", std::string(py::repr(value)).substr(0, 80));
  }
}

// Converts an array of any number type to float. Integers must have the exact type.
template <class T>
Array<T> array_of(py::handle value, const Place& place) {
  const auto any = py::array::ensure(value);
  const bool right = any && (std::is_integral_v<T> ? any.dtype().num() == py::dtype::of<T>().num()
                                                   : std::string_view("fiub").find(any.dtype().kind()) < 4);
  if (!right)
    place.refuse(
        " must be an array of ", std::string(py::str(static_cast<py::object>(py::dtype::of<T>()))), ", got ",
        any ? std::string(py::str(static_cast<py::object>(any.dtype()))) : std::string(py::repr(value)).substr(0, 80));
  return Array<T>(any);
}
template <class T>
std::vector<T> list_of(py::handle value, const Place& place) {
  const Array<T> array = array_of<T>(value, place);
  if (array.ndim() != 1) place.refuse(" must be 1-d, got ", array.ndim(), "-d");
  return {array.data(), array.data() + array.size()};
}

// None stands for the attribute's default.
struct FromPython {
  py::handle value;
  Place place;

  void operator()(bool* to) const {
    py::detail::make_caster<bool> caster;
    if (!caster.load(value, false)) place.refuse(" must be true or false, got ", std::string(py::repr(value)));
    *to = caster;
  }
  void operator()(int64_t* to) const { *to = cast<int64_t>(value, place, "an integer"); }
  void operator()(float* to) const { *to = static_cast<float>(cast<double>(value, place, "a number")); }
  void operator()(Pair* to) const { *to = cast<Pair>(value, place, "two integers"); }
  void operator()(Sides* to) const { *to = cast<Sides>(value, place, "four integers"); }
  void operator()(std::vector<int64_t>* to) const {
    *to = cast<std::vector<int64_t>>(value, place, "a list of integers");
  }
  template <class T>
  void operator()(std::vector<T>* to) const {
    *to = list_of<T>(value, place);
  }
  void operator()(cpu::Binary* to) const {
    const auto name = cast<std::string>(value, place, "a name");
    const auto join = binary_named(name);
    if (!join) place.refuse(" must be \"none\", \"add\" or \"multiply\", got \"", name, "\"");
    *to = *join;
  }
  void operator()(Activation* to) const {
    const auto [name, lo, hi, theta] =
        cast<std::tuple<std::string, double, double, py::object>>(value, place, "(name, lo, hi, theta)");
    const auto act = act_named(name);
    if (!act) place.refuse(": no activation is named \"", name, "\"");
    *to = {*act, static_cast<float>(lo), static_cast<float>(hi), {}};
    if (!theta.is_none()) to->theta = list_of<float>(theta, {place.op, "theta"});
  }
  void operator()(std::optional<Quant>* to) const {
    const auto [scale, zero] = cast<std::pair<double, int64_t>>(value, place, "(scale, zero_point)");
    if (zero < 0 || zero > 255) engine::refuse(place.op, "zero_point must be in [0, 255], got ", zero);
    *to = Quant{static_cast<float>(scale), static_cast<int32_t>(zero)};
  }
  void operator()(Limits* to) const {
    const auto limits = cast<Pair>(value, place, "two integers");
    for (int64_t limit : limits)
      if (limit < 0 || limit > 255) place.refuse(" must be in [0, 255], got ", limit);
    *to = {static_cast<uint8_t>(limits[0]), static_cast<uint8_t>(limits[1])};
  }
  template <class T>
  void operator()(std::shared_ptr<const WeightsOf<T>>* to) const {
    const Array<T> array = array_of<T>(value, place);
    if (array.ndim() < 1) place.refuse(" must have a dimension");
    *to = std::make_shared<const WeightsOf<T>>(array.data(),
                                               std::vector<int64_t>(array.shape(), array.shape() + array.ndim()));
  }
};

inline std::unique_ptr<Attributes> attributes_of(const Kind& kind, const std::string& name, const py::dict& given) {
  auto attributes = kind.attributes();
  size_t found = 0;
  for (const AttributeSlot& slot : attributes->slots()) {
    const bool there = given.contains(slot.name);
    found += there;
    if (there && !given[slot.name].is_none()) std::visit(FromPython{given[slot.name], {name, slot.name}}, slot.value);
    else if (slot.presence == kRequired) refuse(name, "attribute ", slot.name, " is missing");
  }
  if (found == given.size()) return attributes;
  std::string known;
  for (const AttributeSlot& slot : attributes->slots()) {
    if (!known.empty()) known += ", ";
    known += slot.name;
  }
  for (const auto& [key, value] : given) {
    const std::string attribute = py::str(key);
    bool is_known = false;
    for (const AttributeSlot& slot : attributes->slots()) is_known = is_known || attribute == slot.name;
    if (!is_known)
      refuse(name, kind.name, " has no attribute \"", attribute, "\"; it has: ", known.empty() ? "none" : known);
  }
  return attributes;
}

struct ToPython {
  template <class T>
  py::object operator()(const T* x) const {
    return py::cast(*x);
  }
  template <class T>
    requires std::is_arithmetic_v<T>
  py::object operator()(const std::vector<T>* x) const {
    if (x->empty()) return py::none();
    if constexpr (std::is_same_v<T, int64_t>) return py::cast(*x);
    else return Array<T>(static_cast<py::ssize_t>(x->size()), x->data());
  }
  py::object operator()(const cpu::Binary* x) const { return py::cast(name_of(*x)); }
  py::object operator()(const Activation* x) const {
    return py::make_tuple(name_of(x->act), x->lo, x->hi, (*this)(&x->theta));
  }
  py::object operator()(const std::optional<Quant>* x) const {
    if (!*x) return py::none();
    return py::make_tuple((*x)->scale, (*x)->zero_point);
  }
  py::object operator()(const Limits* x) const { return py::make_tuple(x->lo, x->hi); }
  template <class T>
  py::object operator()(const std::shared_ptr<const WeightsOf<T>>* x) const {
    if (!*x) return py::none();
    return Array<T>((*x)->shape(), (*x)->dense().data());
  }
};

inline py::dict dict_of(const Attributes& attributes) {
  py::dict all;
  for (const Attribute& a : attributes.list()) all[a.name] = std::visit(ToPython{}, a.value);
  return all;
}

// All kinds: name -> (names of required attributes, defaults of the others).
inline py::dict kinds_in_python() {
  py::dict all;
  for (const Kind& kind : kinds()) {
    py::list required;
    const auto attributes = kind.attributes();
    for (const Attribute& a : attributes->list())
      if (a.presence == kRequired) required.append(a.name);
    all[kind.name] = py::make_tuple(required, dict_of(*attributes));
  }
  return all;
}

}  // namespace secateur::engine
