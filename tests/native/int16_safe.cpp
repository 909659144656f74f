// Operands of vpmaddubsw (csrc/cpu/int16_safe.h), and their order as the code that builds a layer writes them.
#include <algorithm>

#include "engine/steps/int8/block_weights.h"
#include "testing.h"

namespace secateur::test {
namespace {

// Whether the sums of a block's products, with the bytes that reach furthest to either side, fit 16 bits.
bool within_16_bits(std::initializer_list<uint32_t> blocks) {
  for (int pair = 0; pair < 4; pair += 2) {
    int up = 0, down = 0;
    for (uint32_t four : blocks)
      for (int i = pair; i < pair + 2; ++i) {
        up += 255 * std::max(cpu::weight_at(four, i), 0);
        down += 255 * std::min(cpu::weight_at(four, i), 0);
      }
    if (up > 32767 || down < -32768) return false;
  }
  return true;
}

// Every pair of weights: written as one or two, they add up to themselves, and no sum of two products leaves 16 bits.
void test_split_for_int16() {
  for (int a = -128; a < 128; ++a)
    for (int b = -128; b < 128; ++b) {
      const uint32_t two = static_cast<uint8_t>(a) | uint32_t{static_cast<uint8_t>(b)} << 8, four = two | two << 16;
      const auto [half, rest] = cpu::split_for_int16(four);
      const bool fits = cpu::is_int16_safe(four);
      check(!fits || within_16_bits({four}), "is_int16_safe: ", a, " and ", b);
      check(within_16_bits({half}) && within_16_bits({rest}), "split_for_int16: ", a, " and ", b);
      check(!fits || cpu::sum_fits_int16(cpu::reach_of(half), cpu::reach_of(rest)), "sum_fits_int16: ", a, " and ", b);
      for (int i = 0; i < 4; ++i)
        check(cpu::weight_at(half, i) + cpu::weight_at(rest, i) == (i % 2 ? b : a), "split_for_int16: ", a, " and ", b);
    }
}

void test_pair_blocks(Random& random, uint32_t count, int blocks, int widest) {
  std::vector<uint16_t> offsets(count);
  std::vector<uint32_t> weights(size_t{count} * blocks);
  for (auto& offset : offsets) offset = static_cast<uint16_t>(random());
  for (auto& four : weights) {
    four = 0;
    for (int i = 0; i < 4; ++i) {
      const int w = static_cast<int>(random() % (2 * static_cast<uint32_t>(widest) + 1)) - widest;
      four |= uint32_t{static_cast<uint8_t>(w)} << (8 * i);
    }
    if (!cpu::is_int16_safe(four)) four = cpu::split_for_int16(four).half;
  }
  using Entry = std::vector<uint32_t>;
  const auto entries = [&] {
    std::vector<Entry> all;
    for (uint32_t n = 0; n < count; ++n) {
      all.push_back({offsets[n]});
      all.back().insert(all.back().end(), weights.begin() + n * blocks, weights.begin() + (n + 1) * blocks);
    }
    std::sort(all.begin(), all.end());
    return all;
  };
  const auto before = entries();
  const uint32_t paired = engine::pair_blocks(offsets.data(), weights.data(), count, blocks);
  check(entries() == before, "pair_blocks: other entries than before");
  check(2 * paired <= count, "pair_blocks: ", paired, " of ", count);
  for (uint32_t n = 0; n < paired; ++n)
    for (int j = 0; j < blocks; ++j)
      check(within_16_bits({weights[(2 * n) * blocks + j], weights[(2 * n + 1) * blocks + j]}), "pair_blocks: two ", n,
            " of ", count, " does not fit");
  if (widest <= 32) check(2 * paired + 1 >= count, "pair_blocks: ", paired, " of ", count, ", though all fit");
}

}  // namespace

void test_int16_safe(const Kernels&) {
  test_split_for_int16();
  Random random(31);
  for (int blocks : {1, 4})
    for (int widest : {0, 32, 64, 127})
      for (uint32_t count : {0, 1, 2, 3, 31, 32, 33, 64, 65, 300}) test_pair_blocks(random, count, blocks, widest);
}

}  // namespace secateur::test
