// An int8 depthwise convolution without 1x4 or 4x4 blocks: each channel of a quad is computed by itself.
#pragma once

#include "engine/program/layers.h"
#include "engine/steps/step.h"

namespace secateur::engine {

// Whether it supports the layer (no residual) and is faster than 4x4 blocks.
bool fits_depthwise(const Int8ConvAttributes& conv, const cpu::Int8Kernels& quads);
std::unique_ptr<Step> make_int8_depthwise(const StepContext& context, std::string name, const Int8ConvAttributes& conv,
                                          int x, int y, std::string why);

}  // namespace secateur::engine
