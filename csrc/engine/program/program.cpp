#include "program.h"

#include <algorithm>
#include <typeinfo>

namespace secateur::engine {
namespace {

void check_value(const std::string& op, const char* argument, int value, size_t values) {
  if (value < 0 || static_cast<size_t>(value) >= values)
    refuse(op, argument, " must be a value of this program, got ", value);
}

// Required weights must be set; other attributes have a default.
void check_required(const std::string& op, const Attributes& attributes) {
  for (const Attribute& a : attributes.list())
    std::visit(
        [&](const auto* value) {
          if constexpr (requires { value->get(); })
            if (a.presence == kRequired && !*value) refuse(op, "attribute ", a.name, " is missing");
        },
        a.value);
}

}  // namespace

void Program::check_open(const std::string& op) const {
  if (finished_) refuse(op, "the program is finished");
}

int Program::input(ValueKind kind, int64_t channels) {
  check_open("input");
  if (channels < 1 || channels > INT32_MAX)
    refuse("input", "channels must be at least 1, and below 2^31, got ", channels);
  values_.push_back({kind, channels, {}});
  inputs_.push_back(static_cast<int>(values_.size()) - 1);
  return inputs_.back();
}

int Program::add(const Kind& kind, std::string name, std::vector<int> inputs, std::unique_ptr<Attributes> attributes) {
  check_open(name);
  if (inputs.empty()) refuse(name, "needs an input");
  for (int v : inputs) check_value(name, "x", v, values_.size());
  if (inputs.size() > kind.most_inputs)
    refuse(name, "takes at most ", kind.most_inputs, " inputs, got ", inputs.size());
  const auto own = kind.attributes();
  const Attributes *given = attributes.get(), *wanted = own.get();
  if (!given || typeid(*given) != typeid(*wanted)) refuse(name, "its attributes are not those of a ", kind.name);
  check_required(name, *attributes);
  Value made = kind.check(Adding(name, inputs, values_), *attributes);
  const int output = static_cast<int>(values_.size());
  ops_.push_back({&kind, std::move(name), std::move(inputs), output, made.quant, std::move(attributes)});
  values_.push_back(made);
  return output;
}

void Program::output(int value) {
  check_open("output");
  check_value("output", "value", value, values_.size());
  if (values_[value].quant) refuse("output", "value must be real, not bytes");
  outputs_.push_back(value);
}

void Program::finish() {
  if (outputs_.empty()) refuse("finish", "a program needs an output");
  finished_ = true;
}

}  // namespace secateur::engine
