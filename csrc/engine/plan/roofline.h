#pragma once

#include "cpu/engine.h"

namespace secateur::engine {

// Vectors that one core multiplies and adds in a millisecond, each loaded from the nearest cache: the ceiling of the
// sparse kernels, measured once for each instruction set.
double load_bound_rate(const cpu::EngineKernels& kernels);

}  // namespace secateur::engine
