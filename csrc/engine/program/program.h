// A segment of a network as the front describes it: operations over values, whatever the batch and the image size.
//
// A program is data: it can be copied, compared and written down, and knows nothing of plans. What a caller can get
// wrong is checked as it is added, or when a plan is made (plan/held_program.h), never by a kernel.
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
  std::optional<Quant> quant;  // of the output, where it is bytes
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
  // Checks the operation; its output. The attributes are those of the kind.
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

  // The same operations on the same values; names and every weight count.
  bool operator==(const Program&) const = default;

 private:
  void check_open(const std::string& op) const;

  std::vector<Value> values_;
  std::vector<Op> ops_;
  std::vector<int> inputs_, outputs_;
  bool finished_ = false;
};

}  // namespace secateur::engine
