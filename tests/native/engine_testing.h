// What the tests of the engine's kernels share: activations in double, and how far a float may be from them.
#pragma once

#include <cmath>

#include "cpu/engine.h"
#include "testing.h"

namespace secateur::test {

inline constexpr cpu::Act all_acts[] = {
    cpu::Act::kNone,        cpu::Act::kClamp,   cpu::Act::kThreshold, cpu::Act::kLeaky, cpu::Act::kHardswish,
    cpu::Act::kHardsigmoid, cpu::Act::kSigmoid, cpu::Act::kSilu,      cpu::Act::kGelu,  cpu::Act::kTanh};

double activation_in_double(const cpu::Activation& activation, int64_t channel, double v);

// One result against act(sum): `error` is how far rounding may have taken the sum. Says what `where` was.
void check_activated(float got, const cpu::Activation& activation, int64_t channel, double sum, double error,
                     const std::string& where);

// Random parameters for `act`; theta [channels] goes to `theta` and must live as long as the result.
cpu::Activation random_activation(Random& random, cpu::Act act, const Buffer<float>& theta, int64_t channels);

std::vector<float> normals(Random& random, int64_t n);

}  // namespace secateur::test
