// Code that the tests of the int8 kernels share: random layers, their epilogues in plain loops, and every table that
// runs here.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/int16_safe.h"
#include "cpu/int8.h"
#include "testing.h"

namespace secateur::test {

using cpu::Int8Kernels;

inline int64_t pick(Random& random, int64_t below) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(below));
}
inline std::vector<uint8_t> random_bytes(Random& random, int64_t n) {
  std::vector<uint8_t> v(n);
  for (auto& b : v) b = static_cast<uint8_t>(random());
  return v;
}
inline int8_t signed_byte(uint32_t four, int i) { return static_cast<int8_t>(four >> (8 * i)); }
// Random weights of a 1x4 block, including the extremes; int16-safe if the kernels need that.
inline uint32_t random_block(Random& random, const Int8Kernels& kernels) {
  const uint32_t four = random() % 4 == 0    ? 0x807f807fu
                        : random() % 16 == 0 ? 0x7f7f8181u
                                             : static_cast<uint32_t>(random());
  return !kernels.needs_int16_safe_blocks || cpu::is_int16_safe(four) ? four : cpu::split_for_int16(four).half;
}
// The second of two paired blocks: at the limit if possible, else as random as the first one allows.
inline uint32_t random_fellow(Random& random, const Int8Kernels& kernels, uint32_t& first) {
  const uint32_t four = random_block(random, kernels);
  if (random() % 2 == 0) {
    const auto [half, rest] = cpu::split_for_int16(four);
    first = half;
    return rest;
  }
  uint32_t fellow = four;
  while (fellow != 0 && !cpu::sum_fits_int16(cpu::reach_of(first), cpu::reach_of(fellow)))
    fellow &= ~(uint32_t{0xff} << (8 * pick(random, 4)));
  return fellow;
}
inline float rounded(float v) { return std::nearbyint(v); }

// The epilogue of a layer, with the arrays that it points to.
struct Int8LayerEpilogue {
  int64_t padded;
  Buffer<int32_t> bias;
  Buffer<float> multiplier;
  Buffer<uint8_t> theta;
  cpu::Int8Epilogue end{};

  Int8LayerEpilogue(Random& random, int64_t channels, bool real, bool wide)
      : padded((channels + 3) / 4 * 4), bias(padded), multiplier(padded), theta(padded) {
    for (int64_t k = 0; k < padded; ++k) {
      bias[k] = static_cast<int32_t>(pick(random, 20001)) - 10000;
      multiplier[k] = static_cast<float>(1 + pick(random, 1000)) * (wide ? 1e6f : 2e-5f);
      theta[k] = static_cast<uint8_t>(random());
    }
    end.bias = bias.data();
    end.multiplier = multiplier.data();
    end.zero_point = static_cast<int32_t>(pick(random, 256));
    end.lo = static_cast<uint8_t>(pick(random, 100));
    end.hi = static_cast<uint8_t>(155 + pick(random, 101));
    end.theta = random() % 2 ? theta.data() : nullptr;
    end.residual_multiplier = 0.37f;
    end.residual_zero_point = static_cast<int32_t>(pick(random, 256));
    end.wide = wide;
    end.real = real;
    end.channels = channels;
    if (real) end.activation = {cpu::Act::kClamp, 0.0f, std::numeric_limits<float>::infinity(), nullptr};
  }

  float real(int64_t k, int32_t sum) const { return std::max(static_cast<float>(sum) * multiplier[k], 0.0f); }
  uint8_t byte(int64_t k, int32_t sum, const uint8_t* residual) const {
    float v = static_cast<float>(sum) * multiplier[k];
    if (residual) {
      const float other = static_cast<float>(*residual - end.residual_zero_point) * end.residual_multiplier;
      v = v + other;
    }
    const double q = std::clamp<double>(rounded(std::clamp(v, -1e9f, 1e9f)) + double(end.zero_point), 0, 255);
    const uint8_t limited = std::clamp(static_cast<uint8_t>(q), end.lo, end.hi);
    return end.theta && limited < end.theta[k] ? static_cast<uint8_t>(end.zero_point) : limited;
  }
};

// The tables of the current instruction set that this CPU runs: without its product of four bytes, and with it. Reports
// the missing one.
void for_each_int8_table(void (*test)(const Int8Kernels& kernels));

}  // namespace secateur::test
