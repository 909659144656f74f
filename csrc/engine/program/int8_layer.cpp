#include "int8_layer.h"

#include <cmath>
#include <cstdlib>

namespace secateur::engine {
namespace {

constexpr double kWidest = 1 << 30;  // bound of a number before rounding, see cpu/int8_epilogue.h
constexpr double kLargest = 1e38;    // the sum of two such numbers fits a float32

}  // namespace

cpu::Int8Epilogue Int8Layer::epilogue(int32_t residual_zero_point) const {
  cpu::Int8Epilogue e{};
  e.bias = terms.bias.data();
  e.multiplier = terms.multiplier.data();
  e.zero_point = quant ? quant->zero_point : 0;
  e.lo = limits.lo;
  e.hi = limits.hi;
  e.theta = terms.theta.empty() ? nullptr : terms.theta.data();
  e.residual_multiplier = residual_multiplier;
  e.residual_zero_point = residual_zero_point;
  e.wide = terms.wide;
  e.real = !quant;
  e.channels = bytes->neurons();
  e.activation = activation.view();
  return e;
}

void check_ratio(const Adding& op, const AvgPoolAttributes& pool, const Quant& x, const Quant& y) {
  const Window& w = pool.window;
  // A window at the image's edge may have one place, divided by 1. A divisor of its own divides all of them by less.
  const double places = static_cast<double>(w.kernel[0]) * static_cast<double>(w.kernel[1]);
  const double most = pool.divisor > 0 ? places / static_cast<double>(pool.divisor) : 1.0;
  if (255.0 * most * (double{x.scale} / double{y.scale}) > kWidest)
    op.refuse("the scales of x and output are too far apart, got ", x.scale, " and ", y.scale);
}

void check_theta(const Adding& op, const std::vector<uint8_t>& theta, const std::optional<Quant>& quant,
                 int64_t channels) {
  if (theta.empty()) return;
  if (!quant || channels < 0) op.refuse("a theta in bytes is for an output of bytes with known channels");
  op.want_count("theta", theta.size(), channels);
}

void check_int8_layer(const Adding& op, Int8Layer& layer) {
  Int8EpilogueTerms& terms = layer.terms;
  const int64_t k = layer.bytes->neurons();
  if (!op.x().quant) op.refuse("a layer of bytes takes bytes");
  op.want_count("bias", layer.bias.size(), k);
  op.want_count("multiplier", layer.multiplier.size(), k);
  if (layer.limits.lo > layer.limits.hi) op.refuse("lo must not be above hi");
  if (!std::isfinite(layer.residual_multiplier) || 255.0 * std::fabs(layer.residual_multiplier) > kLargest)
    op.refuse("residual_multiplier must be finite and below 1e35, got ", layer.residual_multiplier);
  terms.wide = false;
  for (int64_t o = 0; o < k; ++o) {
    const float multiplier = layer.multiplier[o];
    if (!std::isfinite(multiplier) || multiplier < 0)
      op.refuse("multiplier must be finite and at least 0, got ", multiplier);
    // Bounds the sum of products of signed and unsigned bytes in any order, for any input. Kernels that take inputs 128
    // lower stay below it too.
    double reach = std::fabs(static_cast<double>(layer.bias[o]));
    layer.bytes->for_each(o, [&](int64_t, int8_t w) { reach += 255.0 * std::abs(int{w}); });
    if (reach > 2147483647.0) op.refuse("sums must stay below 2^31, those of channel ", o, " can reach ", reach);
    if (layer.quant && reach * static_cast<double>(multiplier) > kLargest)
      op.refuse("sums times multiplier must stay below 1e38, got a multiplier of ", multiplier);
    terms.wide = terms.wide || reach * static_cast<double>(multiplier) > 1e9;
  }
  if (layer.quant && layer.activation.act != cpu::Act::kNone)
    op.refuse("an output of bytes ends in lo, hi and theta, not in an activation");
  if (op.inputs() > 1 && !layer.quant) op.refuse("a residual needs an output of bytes");
  check_theta(op, layer.theta, layer.quant, k);
  terms.bias = padded(layer.bias);
  terms.multiplier = padded(layer.multiplier);
  terms.theta = padded(layer.theta);
}

}  // namespace secateur::engine
