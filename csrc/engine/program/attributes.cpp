#include "attributes.h"

#include <bit>
#include <type_traits>
#include <utility>

namespace secateur::engine {
namespace {

constexpr std::pair<const char*, cpu::Act> kActs[] = {
    {"none", cpu::Act::kNone},       {"clamp", cpu::Act::kClamp},         {"threshold", cpu::Act::kThreshold},
    {"leaky", cpu::Act::kLeaky},     {"hardswish", cpu::Act::kHardswish}, {"hardsigmoid", cpu::Act::kHardsigmoid},
    {"sigmoid", cpu::Act::kSigmoid}, {"silu", cpu::Act::kSilu},           {"gelu", cpu::Act::kGelu},
    {"tanh", cpu::Act::kTanh}};
constexpr std::pair<const char*, cpu::Binary> kBinaries[] = {
    {"none", cpu::Binary::kNone}, {"add", cpu::Binary::kAdd}, {"multiply", cpu::Binary::kMultiply}};

template <class Names, class Value>
const char* name_in(const Names& names, Value wanted) {
  for (const auto& [name, value] : names)
    if (value == wanted) return name;
  return nullptr;
}
template <class Value, class Names>
std::optional<Value> value_in(const Names& names, std::string_view wanted) {
  for (const auto& [name, value] : names)
    if (name == wanted) return value;
  return {};
}

template <class T>
bool same(const T& a, const T& b) {
  return a == b;
}
bool same(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }
bool same(const std::vector<float>& a, const std::vector<float>& b) { return same_bits(a, b); }
bool same(const Activation& a, const Activation& b) {
  return a.act == b.act && same(a.lo, b.lo) && same(a.hi, b.hi) && same_bits(a.theta, b.theta);
}
template <class T>
bool same(const std::shared_ptr<const T>& a, const std::shared_ptr<const T>& b) {
  return a == b || (a && b && *a == *b);
}

}  // namespace

const char* name_of(cpu::Act act) { return name_in(kActs, act); }
std::optional<cpu::Act> act_named(std::string_view name) { return value_in<cpu::Act>(kActs, name); }
const char* name_of(cpu::Binary join) { return name_in(kBinaries, join); }
std::optional<cpu::Binary> binary_named(std::string_view name) { return value_in<cpu::Binary>(kBinaries, name); }

bool Activation::never_negative() const {
  using cpu::Act;
  return act == Act::kHardsigmoid || act == Act::kSigmoid || (act == Act::kThreshold && hi >= 0) ||
         (act == Act::kClamp && lo >= 0 && hi >= 0);
}

bool operator==(const Attributes& a, const Attributes& b) {
  const auto ours = a.list(), theirs = b.list();
  if (ours.size() != theirs.size()) return false;
  for (size_t i = 0; i < ours.size(); ++i) {
    if (std::string_view(ours[i].name) != theirs[i].name) return false;
    const bool equal = std::visit(
        [](const auto* x, const auto* y) {
          if constexpr (std::is_same_v<decltype(x), decltype(y)>) return same(*x, *y);
          else return false;
        },
        ours[i].value, theirs[i].value);
    if (!equal) return false;
  }
  return true;
}

}  // namespace secateur::engine
