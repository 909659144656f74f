// A depthwise convolution of bytes without blocks or squares: each channel of a quad for itself.
#pragma once

#include "engine/program/layers.h"
#include "engine/steps/step.h"

namespace secateur::engine {

// Where it can serve, and takes less than squares would; without a residual.
bool fits_depthwise(const Int8ConvAttributes& conv, const cpu::QuadKernels& quads);
std::unique_ptr<Step> make_quad_depthwise(const Workshop& shop, std::string name, const Int8ConvAttributes& conv, int x,
                                          int y, std::string why);

}  // namespace secateur::engine
