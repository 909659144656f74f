// Bytes of a fuzzer as the numbers that a caller may bring: mostly small and fitting, sometimes the worst.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/dispatch.h"

namespace secateur::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : bytes_(data, size) {}

  bool more() { return bytes_.remaining_bytes() > 0; }
  int64_t within(int64_t low, int64_t high) { return bytes_.ConsumeIntegralInRange(low, high); }
  bool coin() { return bytes_.ConsumeBool(); }
  bool one_in(int64_t n) { return bytes_.ConsumeIntegralInRange<int64_t>(1, n) == n; }  // no bytes left: false

  // In [low, high], or once in a while anything at all; `wild` then says so.
  int64_t size(int64_t low, int64_t high) {
    if (!one_in(32)) return within(low, high);
    wild = true;
    static constexpr int64_t worst[] = {-1,
                                        0,
                                        1 << 16,
                                        (1 << 20) + 1,
                                        INT32_MAX,
                                        int64_t{1} << 31,
                                        int64_t{1} << 32,
                                        int64_t{1} << 61,
                                        int64_t{1} << 62,
                                        INT64_MAX,
                                        INT64_MIN,
                                        int64_t{3} << 30};
    return bytes_.PickValueInArray(worst);
  }
  float real() {
    static constexpr float odd[] = {0.0f,
                                    -0.0f,
                                    1e-40f,
                                    1e-20f,
                                    1e20f,
                                    3e38f,
                                    -1.0f,
                                    std::numeric_limits<float>::infinity(),
                                    std::numeric_limits<float>::quiet_NaN()};
    return one_in(16) ? bytes_.PickValueInArray(odd) : static_cast<float>(within(1, 255)) / 64;
  }
  std::vector<uint8_t> rest(size_t most) { return bytes_.ConsumeBytes<uint8_t>(most); }

  // Many numbers from few bytes.
  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }
  void reseed() { state_ = bytes_.ConsumeIntegral<uint16_t>(); }
  std::vector<float> reals(int64_t n) {
    reseed();
    const uint32_t zeros = static_cast<uint32_t>(within(0, 8));
    const bool odd = one_in(8);
    std::vector<float> all(static_cast<size_t>(n));
    for (float& x : all)
      x = next() % 8 < zeros ? 0.0f : odd && next() % 16 == 0 ? real() : static_cast<float>(next() % 2048) / 512 - 2;
    return all;
  }

  bool wild = false;

 private:
  FuzzedDataProvider bytes_;
  uint64_t state_ = 0;
};

inline void choose_isa(Input& in) {
  const bool avx2 = cpu::isa_available(cpu::Isa::kAvx2);
  cpu::force_isa(avx2 && in.coin() ? cpu::Isa::kAvx2 : cpu::Isa::kScalar);
}

}  // namespace secateur::fuzz
