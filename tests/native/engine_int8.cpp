// 1x4 and 4x4 blocks of weights over planes of quads against plain loops: sums of 64-bit integers, and float arithmetic
// with one rounding at a time.
#include "int8_testing.h"

namespace secateur::test {
namespace {

struct Tile {
  int rows, columns, step, chunks;
  bool residual, valid, real, wide, blocks4x4;
};

// One chunk of random blocks: as rows of one output channel, or of four at the same places.
struct Stream {
  std::vector<cpu::BlockRow> rows;
  std::vector<cpu::Block4x4Row> block4x4_rows;
  std::vector<uint16_t> offsets;
  std::vector<uint32_t> weights;
};
Stream random_stream(const Int8Kernels& kernels, Random& random, const Tile& t, int64_t channels, int64_t places,
                     int64_t before) {
  Stream s;
  const int64_t together = t.blocks4x4 ? 4 : 1, padded = (channels + 3) / 4 * 4;
  for (int64_t k = 0; k < padded; k += together) {
    const int64_t base = pick(random, 2 * before + 1) - before;
    const auto count = static_cast<uint32_t>(k < channels ? pick(random, 11) : 0),
               begin = static_cast<uint32_t>(s.offsets.size());
    const auto paired = static_cast<uint32_t>(kernels.needs_int16_safe_blocks ? pick(random, count / 2 + 1) : 0);
    for (uint32_t b = 0; b < count; ++b) {
      const int64_t low = std::max<int64_t>(0, -before - base), high = places - 1 - std::max<int64_t>(base, 0);
      s.offsets.push_back(static_cast<uint16_t>(low + pick(random, high - low + 1)));
      for (int64_t j = 0; j < together; ++j) {
        const bool second = b % 2 && b < 2 * paired;
        const uint32_t four = k + j >= channels ? 0
                              : second          ? random_fellow(random, kernels, *(s.weights.end() - together))
                                                : random_block(random, kernels);
        s.weights.push_back(four);
      }
    }
    int32_t sum[4] = {};
    for (size_t b = int64_t{begin} * together; b < s.weights.size(); ++b)
      for (int i = 0; i < 4; ++i) sum[b % together] += signed_byte(s.weights[b], i);
    const auto channel = static_cast<int32_t>(k), slot = static_cast<int32_t>(t.chunks > 1 ? k : k % 4);
    if (t.blocks4x4)
      s.block4x4_rows.push_back({channel, slot, begin, count, paired, {sum[0], sum[1], sum[2], sum[3]}, base});
    else s.rows.push_back({channel, slot, begin, count, paired, sum[0], base});
  }
  return s;
}

void test_tile(const Int8Kernels& kernels, Random& random, const Tile& t) {
  const int64_t channels = 4 * (1 + pick(random, 2)) - (t.real ? 1 : 0), padded = (channels + 3) / 4 * 4;
  const int64_t n = t.rows * t.columns, places = 30, before = 5;
  const int64_t x_row = (t.columns * t.step + pick(random, 3)) * 64;
  const int64_t reach = (t.rows - 1) * x_row + (t.columns - 1) * t.step * 64 + 64;
  const Buffer<uint8_t> x(random_bytes(random, (before + places - 1) * 64 + reach));
  const Int8LayerEpilogue end(random, channels, t.real, t.wide);
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
    const Stream stream = random_stream(kernels, random, t, channels, places, before);
    const auto add_block = [&](int64_t k, int64_t vectors, uint32_t four) {
      for (int64_t i = 0; i < n * 16; ++i) {
        const int64_t at =
            (before + vectors) * 64 + i / 16 / t.columns * x_row + i / 16 % t.columns * t.step * 64 + i % 16 * 4;
        for (int j = 0; j < 4; ++j) sum[k * n * 16 + i] += signed_byte(four, j) * x[at + j];
      }
    };
    for (const auto& row : stream.rows)
      for (uint32_t b = row.begin; b < row.begin + row.count; ++b)
        add_block(row.channel, row.base + stream.offsets[b], stream.weights[b]);
    for (const auto& row : stream.block4x4_rows)
      for (uint32_t b = row.begin; b < row.begin + row.count; ++b)
        for (int j = 0; j < 4; ++j) add_block(row.channel + j, row.base + stream.offsets[b], stream.weights[4 * b + j]);
    const Buffer<cpu::BlockRow> rows(stream.rows);
    const Buffer<cpu::Block4x4Row> block4x4_rows(stream.block4x4_rows);
    const Buffer<uint16_t> offsets(stream.offsets);
    const Buffer<uint32_t> weights(stream.weights);
    cpu::Int8Out out{};
    out.first = chunk == 0;
    out.last = chunk + 1 == t.chunks;
    out.sums = sums.data();
    out.y = y.data();
    out.y_row = y_row;
    out.y_plane = y_plane;
    out.residual = t.residual ? residual.data() : nullptr;
    out.residual_row = y_row;
    out.residual_plane = y_plane;
    out.valid = t.valid ? valid.data() : nullptr;
    out.valid_row = t.columns;
    const uint8_t* from = x.data() + before * 64;
    if (t.blocks4x4)
      kernels.block4x4_planes[t.step - 1][t.rows][t.columns](
          {block4x4_rows.data(), padded / 4, offsets.data(), weights.data(), from, x_row, &end.end, out});
    else
      kernels.block_planes[t.step - 1][t.rows][t.columns](
          {rows.data(), padded, offsets.data(), weights.data(), from, x_row, &end.end, out});
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
        check(same_bits(got, want), kernels.name, t.blocks4x4 ? ": block4x4_planes" : ": block_planes",
              " to real values: ", got, " is not ", want);
        continue;
      }
      const uint8_t* other = t.residual ? residual.data() + k / 4 * y_plane + at + k % 4 : nullptr;
      const int got = y[k / 4 * y_plane + at + k % 4];
      const int want = is_pixel ? end.byte(k, s, other) : end.end.zero_point;
      check(got == want, kernels.name, t.blocks4x4 ? ": block4x4_planes " : ": block_planes ", t.rows, "x", t.columns,
            " step ", t.step, " channel ", k, ": ", got, " is not ", want);
    }
}

// Products of bytes that would saturate when added in 16 bits: 255 * 127 + 255 * 127 is twice their range. The last
// three weights reach the limit unsplit; split in two, they are paired.
void test_extremes(const Int8Kernels& kernels) {
  constexpr uint32_t weights_at_the_edge[] = {0x7f7f7f7fu, 0x81818181u, 0x80808080u, 0x7f7f8181u,
                                              0x817f7f81u, 0x40404040u, 0xc0c0c0c0u, 0x80008000u};
  const int columns = kernels.max_sums < cpu::kTileColumns ? kernels.max_sums : cpu::kTileColumns;
  for (uint8_t byte : {255, 254, 128, 127, 1, 0})
    for (uint32_t weight : weights_at_the_edge)
      for (uint32_t count : {1u, 3u, 4u, 11u}) {
        std::vector<uint32_t> written;  // as the code that builds a layer writes them
        const uint32_t paired = kernels.needs_int16_safe_blocks && cpu::is_int16_safe(weight) ? count / 2 : 0;
        for (uint32_t n = 0; n < count; ++n) {
          const auto [half, rest] = cpu::split_for_int16(weight);
          if (kernels.needs_int16_safe_blocks && (n < paired || !cpu::is_int16_safe(weight)))
            written.push_back(half), written.push_back(rest);
          else written.push_back(weight);
        }
        const auto blocks = static_cast<uint32_t>(written.size());
        std::vector<uint32_t> blocks4x4;
        for (uint32_t four : written) blocks4x4.insert(blocks4x4.end(), 4, four);
        int32_t of_weights = 0;
        for (int j = 0; j < 4; ++j) of_weights += signed_byte(weight, j) * static_cast<int32_t>(count);
        const int32_t want = 12345 + of_weights * byte;
        const Buffer<uint8_t> x(std::vector<uint8_t>(columns * 64, byte));
        const Buffer<uint16_t> offsets(std::vector<uint16_t>(blocks, 0));
        const Buffer<uint32_t> weights(written), block4x4_weights(blocks4x4);
        const Buffer<int32_t> bias(std::vector<int32_t>(4, 12345)), sums(4 * columns * 16);
        const cpu::BlockRow row{0, 0, 0, blocks, paired, of_weights, 0};
        const cpu::Block4x4Row block4x4_row{0, 0, 0, blocks, paired, {of_weights, of_weights, of_weights, of_weights},
                                            0};
        cpu::Int8Epilogue end{};
        end.bias = bias.data();
        cpu::Int8Out out{};
        out.first = true;
        out.sums = sums.data();
        const auto same = [&](const char* kernel, int n) {
          for (int i = 0; i < n; ++i)
            check(sums[i] == want, kernels.name, ": ", kernel, " of ", int{byte}, " and ", weight, ": ", sums[i],
                  " is not ", want);
        };
        kernels.block_planes[0][1][columns]({&row, 1, offsets.data(), weights.data(), x.data(), 0, &end, out});
        same("block_planes", columns * 16);
        kernels.block4x4_planes[0][1][1](
            {&block4x4_row, 1, offsets.data(), block4x4_weights.data(), x.data(), 0, &end, out});
        same("block4x4_planes", 4 * 16);
        kernels.block_vector({&row, 1, offsets.data(), weights.data(), x.data(), bias.data(), sums.data()});
        same("block_vector", 1);
      }
}

void test_planes(const Int8Kernels& kernels) {
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
        for (bool blocks4x4 : {false, true}) {
          if (blocks4x4 ? columns > cpu::kTileColumns || !kernels.block4x4_planes[step - 1][rows][columns] : !exists)
            continue;
          for (int i = 0; i < 6; ++i, ++variant) {
            const bool real = variant % 5 == 4;
            test_tile(kernels, random,
                      {rows, columns, columns == 1 ? 1 : step, 1 + variant % 3, variant % 2 == 0 && !real,
                       variant % 7 < 3, real, variant % 11 == 0, blocks4x4});
          }
        }
      }
  check(kernels.block4x4_planes[0][1][1] && kernels.block4x4_planes[1][1][1], kernels.name, ": block4x4_planes");
  test_extremes(kernels);
}

}  // namespace

void test_engine_int8(const Kernels&) { for_each_int8_table(test_planes); }

}  // namespace secateur::test
