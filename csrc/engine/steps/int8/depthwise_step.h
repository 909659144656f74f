// A depthwise convolution of bytes without blocks or 4x4 blocks: each channel of a quad for itself.
#pragma once

#include "engine/program/layers.h"
#include "engine/steps/step.h"

namespace secateur::engine {

// Where it can serve, and takes less than 4x4 blocks would; without a residual.
bool fits_depthwise(const Int8ConvAttributes& conv, const cpu::Int8Kernels& quads);
std::unique_ptr<Step> make_int8_depthwise(const StepContext& context, std::string name, const Int8ConvAttributes& conv,
                                          int x, int y, std::string why);

}  // namespace secateur::engine
