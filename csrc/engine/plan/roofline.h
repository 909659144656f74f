#pragma once

#include "cpu/engine.h"

namespace secateur::engine {

// Multiply-adds of vectors per millisecond on one core, each with a load from the nearest cache: the ceiling of the
// sparse kernels. Measured once for each instruction set.
double load_bound_rate(const cpu::EngineKernels& kernels);

}  // namespace secateur::engine
