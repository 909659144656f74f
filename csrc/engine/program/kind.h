// A kind of operation as a program knows it: its name, its attributes, the inputs that it accepts.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "attributes.h"

namespace secateur::engine {

enum class ValueKind { kPlanes, kRows };  // [N, C, H, W] or [N, F]

struct Value {
  ValueKind kind;
  int64_t channels;            // C or F; -1: depends on the image size
  std::optional<Quant> quant;  // int8; otherwise float
  bool planes() const { return kind == ValueKind::kPlanes; }
  bool operator==(const Value&) const = default;
};

// An operation being added to a program, as a kind's check sees it. Each want_* refuses with the operation's name.
class Adding {
 public:
  Adding(const std::string& name, const std::vector<int>& inputs, const std::vector<Value>& values)
      : name_(name), inputs_(inputs), values_(values) {}
  const std::string& name() const { return name_; }
  size_t inputs() const { return inputs_.size(); }
  const Value& input(size_t i) const { return values_[static_cast<size_t>(inputs_[i])]; }
  const Value& x() const { return input(0); }

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    engine::refuse(name_, parts...);
  }
  void want(size_t i, const char* argument, ValueKind kind) const {
    if (input(i).kind != kind) refuse(argument, " must be ", kind == ValueKind::kPlanes ? "planes" : "rows");
  }
  void want_planes() const { want(0, "x", ValueKind::kPlanes); }
  void want_rows() const { want(0, "x", ValueKind::kRows); }
  // Refuses int8 input: int8 and float values are kept apart.
  void want_real(size_t i = 0) const {
    if (input(i).quant) refuse("x must be real values, not bytes");
  }
  void want_count(const char* attribute, size_t got, int64_t want) const { check_count(name_, attribute, got, want); }

 private:
  const std::string& name_;
  const std::vector<int>& inputs_;
  const std::vector<Value>& values_;
};

// The row of a kind. Its part for plans is plan/planned_kind.h.
struct Kind {
  const char* name;
  size_t most_inputs;                                        // at least one
  std::unique_ptr<Attributes> (*attributes)();               // with default values
  Value (*check)(const Adding& op, Attributes& attributes);  // refuses, or returns the output
};

// Checks that kinds share.
void check_quant(const Adding& op, const std::optional<Quant>& quant);
void check_activation(const Adding& op, const Activation& activation, int64_t channels);

}  // namespace secateur::engine
