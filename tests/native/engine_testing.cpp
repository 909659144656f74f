#include "engine_testing.h"

#include <algorithm>

namespace secateur::test {

using cpu::Act;

double activation_in_double(const cpu::Activation& a, int64_t channel, double v) {
  if (std::isnan(v)) return v;
  const double ramp = std::min(std::max(v + 3, 0.0), 6.0);
  switch (a.act) {
    case Act::kNone: return v;
    case Act::kClamp: return std::min(std::max(v, double{a.lo}), double{a.hi});
    case Act::kThreshold: return v < a.theta[channel] ? 0 : std::min(v, double{a.hi});
    case Act::kLeaky: return v < 0 ? v * a.lo : v;
    case Act::kHardswish: return v * ramp / 6;
    case Act::kHardsigmoid: return ramp / 6;
    case Act::kSigmoid: return 1 / (1 + std::exp(-v));
    case Act::kSilu: return v / (1 + std::exp(-v));
    case Act::kGelu: return v * std::erfc(-v / std::sqrt(2.0)) / 2;
    case Act::kTanh: return std::tanh(v);
  }
  fail("an activation without a reference");
}

void check_activated(float got, const cpu::Activation& activation, int64_t channel, double sum, double error,
                     const std::string& where) {
  const double expected = activation_in_double(activation, channel, sum);
  if (std::isnan(expected)) return check(std::isnan(got), where, ": ", got, ", expected NaN");
  if (std::isinf(expected)) return check(got == expected, where, ": ", got, ", expected ", expected);
  // Roundings of up to 2^-24 that meet in a result; in gelu's tail exp(-v * v / 2) multiplies that of its exponent.
  // Results near the smallest normal float may become zero.
  const double roundings = activation.act == Act::kGelu ? 10 + sum * sum / 2 : 5;
  const double allowed = 1.2 * error + roundings * 6e-8 * std::fabs(expected) + 1e-36;
  bool ok = std::fabs(got - expected) <= allowed;
  // A threshold jumps: near it, both sides are right.
  if (activation.act == Act::kThreshold && std::fabs(sum - activation.theta[channel]) <= error)
    ok |= got == 0 || std::fabs(got - std::min(sum, double{activation.hi})) <= allowed;
  check(ok, where, ": activation ", static_cast<int>(activation.act), " of ", sum, " is ", got, ", expected ", expected,
        ", allowed error ", allowed);
}

cpu::Activation random_activation(Random& random, Act act, const Buffer<float>& theta, int64_t channels) {
  std::normal_distribution<float> normal;
  for (int64_t k = 0; k < channels; ++k) theta[k] = std::fabs(normal(random));
  cpu::Activation a;
  a.act = act;
  if (act == Act::kClamp) a.lo = random() % 2 ? 0.0f : -1.0f;
  if (act == Act::kLeaky) a.lo = 0.125f;
  a.hi = random() % 2 ? 6.0f : std::numeric_limits<float>::infinity();
  if (act == Act::kThreshold) a.theta = theta.data();
  return a;
}

std::vector<float> normals(Random& random, int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

}  // namespace secateur::test
