// A segment of a network as the front end describes it: operations over values, for any batch and image size.
//
// A program is data: it can be copied, compared and written down, and knows nothing of plans. Errors of a caller are
// found when an operation is added or a plan is made (plan/held_program.h), never by a kernel.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kind.h"

namespace secateur::engine {

struct Op {
  const Kind* kind;
  std::string name;
  std::vector<int> inputs;  // values
  int output;
  std::optional<Quant> quant;  // of an int8 output
  std::shared_ptr<const Attributes> attributes;

  template <class A>
  const A& as() const {
    return dynamic_cast<const A&>(*attributes);
  }
  bool operator==(const Op& other) const {
    return kind == other.kind && name == other.name && inputs == other.inputs && output == other.output &&
           quant == other.quant && *attributes == *other.attributes;
  }
};

class SECATEUR_EXPORT Program {
 public:
  int input(ValueKind kind, int64_t channels);
  // Checks and adds the operation; returns its output. The attributes must be those of the kind.
  int add(const Kind& kind, std::string name, std::vector<int> inputs, std::unique_ptr<Attributes> attributes);
  template <class A>
  int add(const Kind& kind, std::string name, std::vector<int> inputs, A attributes) {
    return add(kind, std::move(name), std::move(inputs), std::unique_ptr<Attributes>(new A(std::move(attributes))));
  }
  void output(int value);
  void finish();

  const std::vector<Value>& values() const { return values_; }
  const std::vector<Op>& ops() const { return ops_; }
  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<int>& outputs() const { return outputs_; }
  bool finished() const { return finished_; }

  // Equal if the operations and their values are, including names and every weight.
  bool operator==(const Program&) const = default;

 private:
  void check_open(const std::string& op) const;

  std::vector<Value> values_;
  std::vector<Op> ops_;
  std::vector<int> inputs_, outputs_;
  bool finished_ = false;
};

}  // namespace secateur::engine
