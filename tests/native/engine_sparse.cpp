#include <algorithm>

#include "engine_tiles.h"

namespace secateur::test {
namespace {

void test_case(const Kernels& kernels, Random& random, const TileCase& c) {
  const int64_t places = 40, before = 7, sums = c.rows * c.columns * 16;
  const int64_t x_row = (c.columns * c.step + static_cast<int64_t>(random() % 3)) * 16;
  // The extent of a tile's input from the largest offset on, to the float.
  const int64_t reach = (c.rows - 1) * x_row + (c.columns - 1) * c.step * 16 + 16;
  std::vector<float> x = normals(random, (before + places - 1) * 16 + reach);
  if (c.with_nan) x[random() % x.size()] = std::numeric_limits<float>::quiet_NaN();
  const Buffer<float> planes(x);
  const TileOutput output(random, c);
  std::vector<double> sum(c.channels * sums), size(c.channels * sums);
  int64_t most = 0;

  for (int chunk = 0; chunk < c.chunks; ++chunk) {
    std::vector<cpu::SparseRow> rows;
    std::vector<uint16_t> offsets;
    std::vector<float> weights;
    for (int64_t k = 0; k < c.channels; ++k) {
      const int64_t base = static_cast<int64_t>(random() % (2 * before + 1)) - before;
      const uint32_t count = static_cast<uint32_t>(random() % 14);  // none, too; every remainder of four
      most = std::max<int64_t>(most, count);
      // Slots do not follow channels.
      rows.push_back({static_cast<int32_t>(k), static_cast<int32_t>((k + 1) % c.channels),
                      static_cast<uint32_t>(offsets.size()), count, base});
      for (uint32_t n = 0; n < count; ++n) {
        const int64_t low = std::max<int64_t>(0, -before - base), high = places - 1 - std::max<int64_t>(base, 0);
        offsets.push_back(static_cast<uint16_t>(low + static_cast<int64_t>(random() % (high - low + 1))));
        weights.push_back(normals(random, 1)[0]);
        for (int64_t i = 0; i < sums; ++i) {
          const int64_t at = (before + base + offsets.back()) * 16 + i / 16 / c.columns * x_row +
                             i / 16 % c.columns * c.step * 16 + i % 16;
          const double product = double{weights.back()} * x[at];
          sum[k * sums + i] += product;
          size[k * sums + i] += std::fabs(product);
        }
      }
    }
    std::shuffle(rows.begin(), rows.end(), random);
    const Buffer<cpu::SparseRow> row_list(rows);
    const Buffer<uint16_t> offset_stream(offsets);
    const Buffer<float> weight_stream(weights);
    // Rows in two calls, as two threads would.
    const int64_t half = c.channels / 2;
    for (const auto& [begin, end] : {std::pair{int64_t{0}, half}, {half, c.channels}}) {
      cpu::SparsePlanes tile{};
      tile.rows = row_list.data() + begin;
      tile.row_count = end - begin;
      tile.offsets = offset_stream.data();
      tile.weights = weight_stream.data();
      tile.x = planes.data() + before * 16;
      tile.x_row = x_row;
      tile.out = output.out(chunk);
      if (c.columns % 2) tile.ahead = {planes.data(), static_cast<int64_t>(random() % 20), 16, 2, 16, 3};
      kernels.engine.sparse_planes[c.step == 2][c.rows][c.columns](tile);
    }
  }
  output.check(sum, size, double(most * c.chunks), describe(c, "sparse_planes"));
}

bool exists(const cpu::EngineKernels& table, int step, int rows, int columns) {
  return table.sparse_planes[step - 1][rows][columns] != nullptr;
}

}  // namespace

void test_engine_sparse(const Kernels& kernels) {
  const cpu::EngineKernels& table = kernels.engine;
  check(table.max_sums >= 1, "max_sums is ", table.max_sums);
  for (int step = 1; step <= 2; ++step)
    for (int rows = 0; rows <= cpu::kTileRows; ++rows)
      for (int columns = 0; columns <= cpu::kTileLine; ++columns) {
        const int widest = rows == 1 && step == 1 ? cpu::kTileLine : cpu::kTileColumns;
        const bool expected = rows && columns && columns <= widest && rows * columns <= table.max_sums;
        check(exists(table, step, rows, columns) == expected, "sparse_planes[", step - 1, "][", rows, "][", columns,
              "] of ", table.max_sums);
      }
  Random random(11);
  for_tile_cases(exists, kernels, random, test_case);
}

}  // namespace secateur::test
