// Blocks of weights over planes of quads against plain loops: sums of 64-bit integers, and float arithmetic one
// rounding at a time.
#include "quads_testing.h"

namespace secateur::test {
namespace {

struct Tile {
  int rows, columns, step, chunks;
  bool residual, valid, real, wide;
};

void test_tile(const QuadKernels& kernels, Random& random, const Tile& t) {
  const int64_t channels = 4 * (1 + pick(random, 2)) - (t.real ? 1 : 0), padded = (channels + 3) / 4 * 4;
  const int64_t n = t.rows * t.columns, places = 30, before = 5;
  const int64_t x_row = (t.columns * t.step + pick(random, 3)) * 64;
  const int64_t reach = (t.rows - 1) * x_row + (t.columns - 1) * t.step * 64 + 64;
  const Buffer<uint8_t> x(random_bytes(random, (before + places - 1) * 64 + reach));
  const QuadLayerEnd end(random, channels, t.real, t.wide);
  const int64_t y_row = (t.columns + pick(random, 3)) * 64, y_plane = t.rows * y_row;
  const int64_t planes = t.real ? channels : padded / 4;
  const Buffer<uint8_t> y(planes * y_plane);
  const Buffer<uint8_t> residual(random_bytes(random, t.residual ? padded / 4 * y_plane : 0));
  const Buffer<int32_t> sums(t.chunks > 1 ? padded * n * 16 : 4 * n * 16);
  const Buffer<uint16_t> valid(t.valid ? t.rows * t.columns : 0);
  for (int64_t i = 0; t.valid && i < n; ++i) valid[i] = static_cast<uint16_t>(random());
  std::vector<int64_t> sum(padded * n * 16);
  for (int64_t i = 0; i < padded * n * 16; ++i) sum[i] = end.bias[i / (n * 16)];

  for (int chunk = 0; chunk < t.chunks; ++chunk) {
    std::vector<cpu::BlockRow> rows;
    std::vector<uint16_t> offsets;
    std::vector<uint32_t> weights;
    for (int64_t k = 0; k < padded; ++k) {
      const int64_t base = pick(random, 2 * before + 1) - before;
      const auto count = static_cast<uint32_t>(k < channels ? pick(random, 11) : 0);
      rows.push_back({static_cast<int32_t>(k), static_cast<int32_t>(t.chunks > 1 ? k : k % 4),
                      static_cast<uint32_t>(offsets.size()), count, 0, base});
      for (uint32_t b = 0; b < count; ++b) {
        const int64_t low = std::max<int64_t>(0, -before - base), high = places - 1 - std::max<int64_t>(base, 0);
        offsets.push_back(static_cast<uint16_t>(low + pick(random, high - low + 1)));
        weights.push_back(random() % 4 == 0 ? 0x807f807fu : static_cast<uint32_t>(random()));  // the extremes, too
        for (int j = 0; j < 4; ++j) rows.back().weight_sum += signed_byte(weights.back(), j);
        for (int64_t i = 0; i < n * 16; ++i) {
          const int64_t at = (before + base + offsets.back()) * 64 + i / 16 / t.columns * x_row +
                             i / 16 % t.columns * t.step * 64 + i % 16 * 4;
          for (int j = 0; j < 4; ++j) sum[k * n * 16 + i] += signed_byte(weights.back(), j) * x[at + j];
        }
      }
    }
    const Buffer<cpu::BlockRow> row_list(rows);
    const Buffer<uint16_t> offset_stream(offsets);
    const Buffer<uint32_t> weight_stream(weights);
    cpu::BlockPlanes args{};
    args.rows = row_list.data();
    args.row_count = padded;
    args.offsets = offset_stream.data();
    args.weights = weight_stream.data();
    args.x = x.data() + before * 64;
    args.x_row = x_row;
    args.end = &end.end;
    args.out.first = chunk == 0;
    args.out.last = chunk + 1 == t.chunks;
    args.out.sums = sums.data();
    args.out.y = y.data();
    args.out.y_row = y_row;
    args.out.y_plane = y_plane;
    args.out.residual = t.residual ? residual.data() : nullptr;
    args.out.residual_row = y_row;
    args.out.residual_plane = y_plane;
    args.out.valid = t.valid ? valid.data() : nullptr;
    args.out.valid_row = t.columns;
    kernels.block_planes[t.step - 1][t.rows][t.columns](args);
  }
  for (int64_t k = 0; k < channels; ++k)
    for (int64_t i = 0; i < n * 16; ++i) {
      const int64_t vector = i / 16, lane = i % 16;
      const int64_t at = vector / t.columns * y_row + vector % t.columns * 64 + lane * 4;
      const bool is_pixel = !t.valid || (valid[vector] >> lane & 1);
      const auto s = static_cast<int32_t>(sum[k * n * 16 + i]);
      if (t.real) {
        float got;
        std::memcpy(&got, y.data() + k * y_plane + at, 4);
        const float want = is_pixel ? end.real(k, s) : 0.0f;
        check(same_bits(got, want), kernels.name, ": block_planes to real values: ", got, " is not ", want);
        continue;
      }
      const uint8_t* other = t.residual ? residual.data() + k / 4 * y_plane + at + k % 4 : nullptr;
      const int got = y[k / 4 * y_plane + at + k % 4];
      const int want = is_pixel ? end.byte(k, s, other) : end.end.zero_point;
      check(got == want, kernels.name, ": block_planes ", t.rows, "x", t.columns, " step ", t.step, " channel ", k,
            ": ", got, " is not ", want);
    }
}

// Where products of bytes that are added in 16 bits would saturate: 255 * 127 + 255 * 127 is twice what these hold.
void test_extremes(const QuadKernels& kernels) {
  constexpr uint32_t weights_at_the_edge[] = {0x7f7f7f7fu, 0x81818181u, 0x80808080u, 0x7f7f8181u, 0x817f7f81u};
  const int columns = kernels.max_sums < cpu::kTileColumns ? kernels.max_sums : cpu::kTileColumns;
  for (uint8_t byte : {255, 254, 128, 127, 1, 0})
    for (uint32_t weight : weights_at_the_edge)
      for (uint32_t count : {1u, 3u, 4u, 11u}) {
        const Buffer<uint8_t> x(std::vector<uint8_t>(columns * 64, byte));
        const Buffer<uint16_t> offsets(std::vector<uint16_t>(count, 0));
        const Buffer<uint32_t> weights(std::vector<uint32_t>(count, weight));
        const Buffer<int32_t> bias(std::vector<int32_t>(4, 12345)), sums(columns * 16);
        int32_t of_weights = 0;
        for (int j = 0; j < 4; ++j) of_weights += signed_byte(weight, j) * static_cast<int32_t>(count);
        const int32_t want = 12345 + of_weights * byte;
        const cpu::BlockRow row{0, 0, 0, count, of_weights, 0};
        cpu::QuadEnd end{};
        end.bias = bias.data();
        cpu::BlockPlanes args{};
        args.rows = &row;
        args.row_count = 1;
        args.offsets = offsets.data();
        args.weights = weights.data();
        args.x = x.data();
        args.end = &end;
        args.out.first = true;
        args.out.sums = sums.data();
        kernels.block_planes[0][1][columns](args);
        for (int i = 0; i < columns * 16; ++i)
          check(sums[i] == want, kernels.name, ": block_planes of ", int{byte}, " and ", weight, ": ", sums[i],
                " is not ", want);
        const cpu::BlockVector vector{&row, 1, offsets.data(), weights.data(), x.data(), bias.data(), sums.data()};
        kernels.block_vector(vector);
        check(sums[0] == want, kernels.name, ": block_vector of ", int{byte}, " and ", weight, ": ", sums[0],
              " is not ", want);
      }
}

void test_planes(const QuadKernels& kernels) {
  Random random(29);
  check(kernels.max_sums >= 4, kernels.name, ": max_sums is ", kernels.max_sums);
  int variant = 0;
  for (int step = 1; step <= 2; ++step)
    for (int rows = 1; rows <= cpu::kTileRows; ++rows)
      for (int columns = 1; columns <= cpu::kTileLine; ++columns) {
        const int widest = rows == 1 && step == 1 ? cpu::kTileLine : cpu::kTileColumns;
        const bool expected = columns <= widest && rows * columns <= kernels.max_sums;
        const bool exists = kernels.block_planes[step - 1][rows][columns] != nullptr;
        check(exists == expected, kernels.name, ": block_planes[", step - 1, "][", rows, "][", columns, "]");
        if (!exists) continue;
        for (int i = 0; i < 6; ++i, ++variant) {
          const bool real = variant % 5 == 4;
          test_tile(kernels, random,
                    {rows, columns, columns == 1 ? 1 : step, 1 + variant % 3, variant % 2 == 0 && !real,
                     variant % 7 < 3, real, variant % 11 == 0});
        }
      }
  test_extremes(kernels);
}

}  // namespace

void test_engine_quads(const Kernels&) { for_each_quad_table(test_planes); }

}  // namespace secateur::test
