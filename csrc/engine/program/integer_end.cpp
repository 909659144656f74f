#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>

#include "engine/steps/int8/block_weights.h"
#include "integer_checks.h"
#include "program.h"

namespace secateur::engine {
namespace {

[[noreturn]] void refuse(const Op& op, const std::string& what) {
  throw std::invalid_argument("engine: " + op.name + ": " + what);
}

constexpr double kWidest = 1 << 30;  // of a number that is to be rounded, see cpu/quads_end.h
constexpr double kLargest = 1e38;    // the sum of two such numbers is a float32

std::string shown(float x) {  // std::to_string has six decimals
  char text[32];
  std::snprintf(text, sizeof text, "%g", static_cast<double>(x));
  return text;
}

void check_count(const Op& op, const char* argument, size_t got, int64_t want) {
  if (static_cast<int64_t>(got) != want)
    refuse(op, std::string(argument) + " must have " + std::to_string(want) + " elements, got " + std::to_string(got));
}

}  // namespace

cpu::QuadEnd IntegerEnd::view(const Op& op, int32_t residual_zero_point) const {
  cpu::QuadEnd e{};
  e.bias = bias.data();
  e.multiplier = multiplier.data();
  e.zero_point = op.quant ? op.quant->zero_point : 0;
  e.lo = lo;
  e.hi = hi;
  e.theta = theta.empty() ? nullptr : theta.data();
  e.residual_multiplier = residual_multiplier;
  e.residual_zero_point = residual_zero_point;
  e.wide = wide;
  e.real = !op.quant;
  e.channels = op.neurons();
  e.activation = op.activation.view();
  return e;
}

void check_quant(const Op& op, const Quant& quant) {
  // Below the smallest normal number there is no inverse.
  if (!(quant.scale >= std::numeric_limits<float>::min()) || !std::isfinite(quant.scale))
    refuse(op, "scale must be finite and > 0, got " + shown(quant.scale));
  if (quant.zero_point < 0 || quant.zero_point > 255)
    refuse(op, "zero_point must be in [0, 255], got " + std::to_string(quant.zero_point));
}

void check_ratio(const Op& op, const Quant& x, const Quant& y) {
  const Window& w = op.window;
  // A window at the image's edge may have one place, divided by 1; an own divisor divides all of them by less.
  const double places = static_cast<double>(w.kernel[0]) * static_cast<double>(w.kernel[1]);
  const double most = op.divisor > 0 ? places / static_cast<double>(op.divisor) : 1.0;
  if (255.0 * most * (double{x.scale} / double{y.scale}) > kWidest)
    refuse(op, "the scales of x and output are too far apart, got " + shown(x.scale) + " and " + shown(y.scale));
}

void check_theta(Op& op, int64_t channels) {
  auto& theta = op.end.theta;
  if (theta.empty()) return;
  if (!op.quant || channels < 0) refuse(op, "a theta in bytes is for an output of bytes with known channels");
  check_count(op, "theta", theta.size(), channels);
  theta.resize(static_cast<size_t>(whole_quads(channels) * 4), 0);
}

void check_integer_layer(Op& op, const Value& x) {
  IntegerEnd& end = op.end;
  const int64_t k = op.neurons();
  if (!x.quant) refuse(op, "a layer of bytes takes bytes");
  check_count(op, "bias", end.bias.size(), k);
  check_count(op, "multiplier", end.multiplier.size(), k);
  if (end.lo > end.hi) refuse(op, "lo must not be above hi");
  if (!std::isfinite(end.residual_multiplier) || 255.0 * std::fabs(end.residual_multiplier) > kLargest)
    refuse(op, "residual_multiplier must be finite and below 1e35, got " + shown(end.residual_multiplier));
  end.wide = false;
  for (int64_t o = 0; o < k; ++o) {
    if (!std::isfinite(end.multiplier[o]) || end.multiplier[o] < 0)
      refuse(op, "multiplier must be finite and at least 0, got " + shown(end.multiplier[o]));
    // Products of signed bytes and bytes, in any order, whatever the input; kernels that take inputs 128 lower stay
    // below this, too.
    double reach = std::fabs(static_cast<double>(end.bias[o]));
    op.bytes->for_each(o, [&](int64_t, int8_t w) { reach += 255.0 * std::abs(int{w}); });
    if (reach > 2147483647.0)
      refuse(op, "sums must stay below 2^31, those of channel " + std::to_string(o) + " can reach " +
                     std::to_string(reach));
    if (op.quant && reach * static_cast<double>(end.multiplier[o]) > kLargest)
      refuse(op, "sums times multiplier must stay below 1e38, got a multiplier of " + shown(end.multiplier[o]));
    end.wide = end.wide || reach * static_cast<double>(end.multiplier[o]) > 1e9;
  }
  const auto padded = static_cast<size_t>(whole_quads(k) * 4);
  end.bias.resize(padded, 0);
  end.multiplier.resize(padded, 0);
  if (op.quant && op.activation.act != cpu::Act::kNone)
    refuse(op, "an output of bytes ends in lo, hi and theta, not in an activation");
  if (op.inputs.size() > 1 && !op.quant) refuse(op, "a residual needs an output of bytes");
  check_theta(op, k);
}

}  // namespace secateur::engine
