// The attributes of an operation: a kind declares them once; all other code visits them by name, type and value.
//
// A kind's attributes are a struct of their own, so no operation can hold another kind's. `each` of the struct is the
// only list of them: the Python builder fills them in from it, comparison and text read them through it.
//
//   struct PReluAttributes : AttributesOf<PReluAttributes> {
//     std::vector<float> slope;  // [C]
//     template <class Self, class F>
//     static void each(Self& a, F&& f) { f("slope", a.slope, kRequired); }
//   };
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "cpu/engine.h"
#include "refuse.h"
#include "weights.h"

namespace secateur::engine {

// A byte q stands for (q - zero_point) * scale.
struct Quant {
  float scale = 1;
  int32_t zero_point = 0;
  bool operator==(const Quant&) const = default;
};

// Bytes are clamped to [lo, hi].
struct Limits {
  uint8_t lo = 0, hi = 255;
  bool operator==(const Limits&) const = default;
};

struct Activation {
  cpu::Act act = cpu::Act::kNone;
  float lo = 0, hi = 0;
  std::vector<float> theta;  // [K] for kThreshold
  cpu::Activation view() const { return {act, lo, hi, theta.empty() ? nullptr : theta.data()}; }
  bool never_negative() const;  // for any input
};

// Names in a program's text and in its builder. Unknown: nullptr, or no value.
SECATEUR_EXPORT const char* name_of(cpu::Act act);
SECATEUR_EXPORT std::optional<cpu::Act> act_named(std::string_view name);
SECATEUR_EXPORT const char* name_of(cpu::Binary join);
SECATEUR_EXPORT std::optional<cpu::Binary> binary_named(std::string_view name);

using Pair = std::array<int64_t, 2>;   // rows first
using Sides = std::array<int64_t, 4>;  // top, left, bottom, right

// The types that an attribute may have. Code that reads or writes attributes handles these, for any kind.
template <template <class> class Of>
using AnyOf = std::variant<Of<bool>, Of<int64_t>, Of<float>, Of<Pair>, Of<Sides>, Of<std::vector<int64_t>>,
                           Of<std::vector<float>>, Of<std::vector<int32_t>>, Of<std::vector<uint8_t>>, Of<cpu::Binary>,
                           Of<Activation>, Of<std::optional<Quant>>, Of<Limits>, Of<std::shared_ptr<const Weights>>,
                           Of<std::shared_ptr<const ByteWeights>>>;
template <class T>
using Writable = T*;
template <class T>
using Readable = const T*;

enum Presence { kOptional, kRequired };

struct Attribute {  // read access
  const char* name;
  Presence presence;
  AnyOf<Readable> value;
};
struct AttributeSlot {  // write access
  const char* name;
  Presence presence;
  AnyOf<Writable> value;
};

class Attributes {
 public:
  virtual ~Attributes() = default;
  virtual std::vector<Attribute> list() const = 0;
  virtual std::vector<AttributeSlot> slots() = 0;
};

// Equal if names, types and the bits of all values are; weights are compared one by one.
SECATEUR_EXPORT bool operator==(const Attributes& a, const Attributes& b);

template <class A>
class AttributesOf : public Attributes {
 public:
  std::vector<Attribute> list() const override {
    std::vector<Attribute> all;
    A::each(static_cast<const A&>(*this), [&](const char* name, const auto& value, Presence presence = kOptional) {
      all.push_back({name, presence, &value});
    });
    return all;
  }
  std::vector<AttributeSlot> slots() override {
    std::vector<AttributeSlot> all;
    A::each(static_cast<A&>(*this), [&](const char* name, auto& value, Presence presence = kOptional) {
      all.push_back({name, presence, &value});
    });
    return all;
  }
};

struct NoAttributes : AttributesOf<NoAttributes> {
  template <class Self, class F>
  static void each(Self&, F&&) {}
};

}  // namespace secateur::engine
