#include "text.h"

#include <charconv>

namespace secateur::engine {
namespace {

// Appends attribute values of any type.
class Text {
 public:
  std::string text;

  void operator()(const char* x) { text += x; }
  void operator()(const std::string& x) { text += x; }
  void operator()(bool x) { text += x ? "true" : "false"; }
  void operator()(float x) {  // the shortest digits that parse to the same number
    char digits[32];
    text.append(digits, std::to_chars(digits, digits + sizeof digits, x).ptr);
  }
  template <class T>
    requires std::is_integral_v<T>
  void operator()(T x) {
    text += std::to_string(x);
  }
  void operator()(cpu::Binary join) { text += name_of(join); }
  template <class T, size_t N>
  void operator()(const std::array<T, N>& x) {
    list(x);
  }
  template <class T>
  void operator()(const std::vector<T>& x) {
    list(x);
  }
  void operator()(const Activation& a) {
    all(name_of(a.act), "(", a.lo, ", ", a.hi);
    if (!a.theta.empty()) all(", ", a.theta);
    all(")");
  }
  void operator()(const std::optional<Quant>& q) {
    if (q) all("bytes(", q->scale, ", ", q->zero_point, ")");
    else all("real");
  }
  void operator()(const Limits& x) { all("[", x.lo, ", ", x.hi, "]"); }
  template <class T>
  void operator()(const std::shared_ptr<const WeightsOf<T>>& w) {
    if (w) all("weights", w->shape(), " ", w->dense());
    else all("none");
  }
  void operator()(const Value& v) { all(v.planes() ? "planes[" : "rows[", v.channels, "] ", v.quant); }

  template <class... Parts>
  void all(const Parts&... parts) {
    ((*this)(parts), ...);
  }

 private:
  template <class List>
  void list(const List& values) {
    const char* separator = "[";
    for (const auto& x : values) {
      all(separator, x);
      separator = ", ";
    }
    all(values.empty() ? "[]" : "]");
  }
};

}  // namespace

std::string text_of(const Program& program) {
  Text t;
  for (int v : program.inputs()) t.all("%", v, " = input: ", program.values()[v], "\n");
  for (const Op& op : program.ops()) {
    t.all("%", op.output, " = ", op.kind->name, " \"", op.name, "\"");
    for (int v : op.inputs) t.all(" %", v);
    t.all(": ", program.values()[op.output], "\n");
    for (const Attribute& a : op.attributes->list()) {
      t.all("    ", a.name, " = ");
      std::visit([&](const auto* x) { t(*x); }, a.value);
      t("\n");
    }
  }
  for (int v : program.outputs()) t.all("output %", v, "\n");
  if (!program.finished()) t("unfinished\n");
  return std::move(t.text);
}

}  // namespace secateur::engine
