// Programs as data: copied, compared, written down; attributes of the wrong kind; sizes without a plan.
#include <limits>
#include <set>

#include "engine/kinds/table.h"
#include "engine/program/text.h"
#include "engine_networks.h"

namespace secateur::test {
namespace {

using engine::Attribute;
using engine::AttributeSlot;
using engine::kind_named;
using engine::Program;
using engine::ValueKind;

template <class Error, class Body>
void refused(const char* message, const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    check(std::string(error.what()).find(message) != std::string::npos, "engine_data: said \"", error.what(),
          "\" instead of \"", message, "\"");
    return;
  }
  fail(std::string("engine_data: nothing refused, expected ") + message);
}

void test_copies(const Network& network) {
  const Program& program = network.program->program();
  const Program copy = program;
  check(copy == program, "engine_data: ", network.name, ": a copy is not equal");
  check(engine::text_of(copy) == engine::text_of(program), "engine_data: ", network.name, ": a copy has another text");
  for (const engine::Op& op : program.ops()) {
    const std::string line = std::string(op.kind->name) + " \"" + op.name + "\"";
    check(engine::text_of(program).find(line) != std::string::npos, "engine_data: the text lacks ", line);
  }
}

// Every attribute of every kind counts in a comparison: changing one makes the attributes unequal.
struct Changed {
  bool operator()(bool* x) const { return *x = !*x, true; }
  bool operator()(int64_t* x) const { return ++*x, true; }
  bool operator()(float* x) const { return *x += 0.5f, true; }
  bool operator()(engine::Pair* x) const { return ++(*x)[1], true; }
  bool operator()(engine::Sides* x) const { return ++(*x)[3], true; }
  template <class T>
  bool operator()(std::vector<T>* x) const {
    return x->push_back(T{1}), true;
  }
  bool operator()(cpu::Binary* x) const { return *x = cpu::Binary::kMultiply, true; }
  bool operator()(engine::Activation* x) const { return x->theta.push_back(1.0f), true; }
  bool operator()(std::optional<engine::Quant>* x) const { return *x = engine::Quant{2.0f, 1}, true; }
  bool operator()(engine::Limits* x) const { return --x->hi, true; }
  template <class T>
  bool operator()(std::shared_ptr<const engine::WeightsOf<T>>* x) const {
    const T one[] = {T{1}};
    return *x = std::make_shared<const engine::WeightsOf<T>>(one, std::vector<int64_t>{1, 1}), true;
  }
};

void test_kinds() {
  std::set<std::string> names;
  for (const engine::Kind& kind : engine::kinds()) {
    check(names.insert(kind.name).second, "engine_data: two kinds are named ", kind.name);
    check(engine::find_kind(kind.name) == &kind, "engine_data: ", kind.name, " is not found");
    const auto plain = kind.attributes();
    check(*plain == *kind.attributes(), "engine_data: ", kind.name, ": fresh attributes differ");
    std::set<std::string> attributes;
    for (size_t i = 0; i < plain->list().size(); ++i) {
      const auto other = kind.attributes();
      const AttributeSlot slot = other->slots()[i];
      check(std::string(slot.name) == plain->list()[i].name, "engine_data: ", kind.name, ": slots in another order");
      check(attributes.insert(slot.name).second, "engine_data: ", kind.name, " has two attributes ", slot.name);
      std::visit(Changed{}, slot.value);
      check(!(*other == *plain), "engine_data: ", kind.name, ": ", slot.name, " does not count");
    }
  }
  check(!engine::find_kind("conv3d"), "engine_data: a kind that there is not is found");
}

void test_values_of_weights() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto program_with = [&](std::vector<float> weights) {
    Program p;
    engine::LinearAttributes a;
    a.weights = std::make_shared<const engine::Weights>(weights.data(), std::vector<int64_t>{2, 2});
    p.output(p.add(kind_named("linear"), "l", {p.input(ValueKind::kRows, 2)}, a));
    p.finish();
    return p;
  };
  check(program_with({1, 0, 0, 2}) == program_with({1, 0, 0, 2}), "engine_data: equal weights differ");
  check(program_with({1, nan, 3, 2}) == program_with({1, nan, 3, 2}), "engine_data: a NaN differs from itself");
  check(!(program_with({1, 0, 0, 2}) == program_with({1, 0, 2, 0})), "engine_data: another place, said to be equal");
  check(!(program_with({1, 0, 0, 2}) == program_with({1, 0, 0, 3})), "engine_data: another weight, said to be equal");
}

void test_refusals() {
  Program p;
  const int x = p.input(ValueKind::kPlanes, 4);
  refused<std::invalid_argument>("engine: m: its attributes are not those of a map",
                                 [&] { p.add(kind_named("map"), "m", {x}, engine::ConvAttributes()); });
  refused<std::invalid_argument>("engine: c: attribute weight is missing",
                                 [&] { p.add(kind_named("conv2d"), "c", {x}, engine::ConvAttributes()); });
  refused<std::invalid_argument>("engine: m: takes at most 2 inputs, got 3",
                                 [&] { p.add(kind_named("map"), "m", {x, x, x}, engine::MapAttributes()); });
  refused<std::invalid_argument>("no kind of operation", [] { kind_named("conv3d"); });
  refused<std::invalid_argument>("the program is not finished", [&] { engine::HeldProgram{p}; });
  p.output(x);
  p.finish();
  refused<std::invalid_argument>("the program is finished",
                                 [&] { p.add(kind_named("flatten"), "f", {x}, engine::NoAttributes()); });
}

// A size without a plan throws another error than a wrong call, and leaves the program usable.
void test_unplannable(const Network& network) {
  engine::HeldProgram& held = *network.program;
  refused<engine::Unplannable>("an image must have at least one pixel", [&] { held.plan({{0, 3}}, -1); });
  try {
    held.plan({}, -1);
    fail("engine_data: no size, and no error");
  } catch (const engine::Unplannable&) {
    fail("engine_data: a wrong call counts as a size without a plan");
  } catch (const std::invalid_argument&) {
  }
  check(held.plan({{5, 6}}, -1) != nullptr, "engine_data: no plan");
}

}  // namespace

void test_engine_data(const Kernels&) {
  Random random(12);
  for (const Network& network : {real_network(random), byte_network(random)}) {
    test_copies(network);
    test_unplannable(network);
  }
  check(!(real_network(random).program->program() == real_network(random).program->program()),
        "engine_data: networks of other weights are said to be equal");
  test_kinds();
  test_values_of_weights();
  test_refusals();
}

}  // namespace secateur::test
