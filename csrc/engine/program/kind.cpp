#include "kind.h"

#include <cmath>
#include <limits>

namespace secateur::engine {

void check_quant(const Adding& op, const std::optional<Quant>& quant) {
  if (!quant) return;
  // A scale below the smallest normal number has no finite inverse.
  if (!(quant->scale >= std::numeric_limits<float>::min()) || !std::isfinite(quant->scale))
    op.refuse("scale must be finite and > 0, got ", quant->scale);
  if (quant->zero_point < 0 || quant->zero_point > 255)
    op.refuse("zero_point must be in [0, 255], got ", quant->zero_point);
}

void check_activation(const Adding& op, const Activation& a, int64_t channels) {
  if (a.act == cpu::Act::kThreshold) {
    if (channels < 0) op.refuse("a threshold needs a known number of channels");
    op.want_count("theta", a.theta.size(), channels);
    for (float t : a.theta)
      if (!(t >= 0)) op.refuse("theta must be at least 0, got ", t);
  } else if (!a.theta.empty()) {
    op.refuse("theta is for the activation \"threshold\" only");
  }
  if (std::isnan(a.lo) || std::isnan(a.hi)) op.refuse("the bounds of an activation must not be NaN");
}

}  // namespace secateur::engine
