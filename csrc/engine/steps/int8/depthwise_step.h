// A depthwise convolution of bytes without blocks or squares: each channel of a quad for itself.
#pragma once

#include "engine/steps/planes_steps.h"

namespace secateur::engine {

// Where it can serve, and takes less than squares would; without a residual.
bool fits_depthwise(const Op& op, const cpu::QuadKernels& quads);
// why: added to the report's, or empty.
std::unique_ptr<Step> make_quad_depthwise(const Workshop& shop, const Op& op, int x, int y, std::string why);

}  // namespace secateur::engine
