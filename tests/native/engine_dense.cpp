#include <algorithm>

#include "engine_tiles.h"

namespace secateur::test {
namespace {

constexpr int64_t block = cpu::kDenseBlock;

void test_case(const Kernels& kernels, Random& random, const TileCase& c) {
  const int64_t sums = c.rows * c.columns * 16, inputs = 3, taps = 1 + static_cast<int64_t>(random() % 5);
  const int64_t x_row = (c.columns * c.step + static_cast<int64_t>(random() % 3)) * 16;
  const int64_t reach = (c.rows - 1) * x_row + (c.columns - 1) * c.step * 16 + 16;
  const int64_t before = 5 * 16, after = 6 * 16, x_plane = 13 * 16, in_all = inputs * c.chunks;
  const int64_t blocks = (c.channels + block - 1) / block;
  std::vector<float> x = normals(random, before + (in_all - 1) * x_plane + after + reach);
  if (c.with_nan) x[random() % x.size()] = std::numeric_limits<float>::quiet_NaN();
  std::vector<int32_t> tap_list;
  for (int64_t t = 0; t < taps; ++t) tap_list.push_back((static_cast<int32_t>(random() % 12) - 5) * 16);
  std::vector<float> weights(blocks * block * in_all * taps);  // [blocks][inputs][taps][block]
  std::vector<double> sum(c.channels * sums), size(c.channels * sums);
  for (int64_t k = 0; k < c.channels; ++k)
    for (int64_t ct = 0; ct < in_all * taps; ++ct) {
      const float weight = normals(random, 1)[0];
      weights[(k / block * in_all * taps + ct) * block + k % block] = weight;
      for (int64_t i = 0; i < sums; ++i) {
        const int64_t at = before + ct / taps * x_plane + tap_list[ct % taps] + i / 16 / c.columns * x_row +
                           i / 16 % c.columns * c.step * 16 + i % 16;
        const double product = double{weight} * x[at];
        sum[k * sums + i] += product;
        size[k * sums + i] += std::fabs(product);
      }
    }

  const Buffer<float> planes(x), weight_blocks(weights);
  const Buffer<int32_t> tap_offsets(tap_list);
  const TileOutput output(random, c);
  for (int chunk = 0; chunk < c.chunks; ++chunk)
    // A call for the first block, one for the rest, as two threads would.
    for (const auto& [begin, end] : {std::pair{int64_t{0}, std::min(block, c.channels)}, {block, c.channels}}) {
      if (begin >= end) continue;
      cpu::DensePlanes tile{};
      tile.block_stride = block * in_all * taps;
      tile.weights = weight_blocks.data() + begin / block * tile.block_stride + chunk * inputs * taps * block;
      tile.k_begin = begin;
      tile.k_end = end;
      tile.channels = inputs;
      tile.taps = tap_offsets.data();
      tile.tap_count = taps;
      tile.x = planes.data() + before + chunk * inputs * x_plane;
      tile.x_row = x_row;
      tile.x_plane = x_plane;
      tile.out = output.out(chunk);
      if (c.chunks > 1) tile.out.scratch += begin * sums;
      kernels.engine.dense_planes[c.step == 2][c.rows][c.columns](tile);
    }
  output.check(sum, size, double(in_all * taps), describe(c, "dense_planes"));
}

bool exists(const cpu::EngineKernels& table, int step, int rows, int columns) {
  return columns <= cpu::kTileColumns && table.dense_planes[step - 1][rows][columns] != nullptr;
}

}  // namespace

void test_engine_dense(const Kernels& kernels) {
  for (int step = 1; step <= 2; ++step)
    check(exists(kernels.engine, step, 1, 1), "dense_planes[", step - 1, "][1][1] is missing");
  Random random(12);
  for_tile_cases(exists, kernels, random, test_case);
}

}  // namespace secateur::test
