// int8 linear layers, pools, depthwise layers, quantize and dequantize, against plain loops.
#include "int8_testing.h"

namespace secateur::test {
namespace {

void test_vector(const Int8Kernels& kernels, Random& random) {
  for (int64_t count : {0, 1, 3, 8, 15, 16, 17, 40}) {
    const int64_t quads = 21;
    const Buffer<uint8_t> x(random_bytes(random, 4 * quads));
    std::vector<cpu::BlockRow> rows;
    std::vector<uint16_t> offsets;
    std::vector<uint32_t> weights;
    std::vector<int32_t> want;
    const Buffer<int32_t> bias(std::vector<int32_t>{7, -9000, 0});
    for (int32_t k = 0; k < 3; ++k) {
      rows.push_back({k, k, static_cast<uint32_t>(offsets.size()), static_cast<uint32_t>(count), 0, 0, k});
      want.push_back(bias[k]);
      for (int64_t b = 0; b < count; ++b) {
        offsets.push_back(static_cast<uint16_t>(pick(random, quads - k)));
        weights.push_back(random_block(random, kernels));
        for (int j = 0; j < 4; ++j) want.back() += signed_byte(weights.back(), j) * x[4 * (offsets.back() + k) + j];
      }
    }
    const Buffer<cpu::BlockRow> row_list(rows);
    const Buffer<uint16_t> offset_stream(offsets);
    const Buffer<uint32_t> weight_stream(weights);
    const Buffer<int32_t> sums(3);
    cpu::BlockVector args{row_list.data(), 3,           offset_stream.data(), weight_stream.data(),
                          x.data(),        bias.data(), sums.data()};
    kernels.block_vector(args);
    for (int k = 0; k < 3; ++k) check(sums[k] == want[k], kernels.name, ": block_vector of ", count, " blocks");
    args.bias = nullptr;
    kernels.block_vector(args);
    for (int k = 0; k < 3; ++k)
      check(sums[k] == 2 * want[k] - bias[k], kernels.name, ": block_vector, second chunk of ", count);
  }
}

void test_pools(const Int8Kernels& kernels, Random& random) {
  for (bool is_max : {true, false})
    for (bool scaled : {true, false})
      for (bool with_valid : {true, false}) {
        const int64_t count = 3, vectors = 9;
        const Buffer<uint8_t> x(random_bytes(random, vectors * 64)), y(count * 64);
        const Buffer<int32_t> taps(std::vector<int32_t>{0, 64, 256});
        const Buffer<float> scale(count * 16);
        const Buffer<uint16_t> valid(count);
        for (int64_t i = 0; i < count * 16; ++i) scale[i] = 0.1f + 0.01f * static_cast<float>(i);
        for (int64_t i = 0; i < count; ++i) valid[i] = static_cast<uint16_t>(random());
        cpu::Int8PoolRow row{};
        row.x = x.data();
        row.taps = taps.data();
        row.tap_count = 3;
        row.step = 128;
        row.y = y.data();
        row.count = count;
        row.is_max = is_max;
        row.factor = 0.3f;
        row.scale = scaled ? scale.data() : nullptr;
        row.zero_point = 100;
        row.y_zero_point = 60;
        row.valid = with_valid ? valid.data() : nullptr;
        kernels.pool_row(row);
        for (int64_t i = 0; i < count * 64; ++i) {
          int most = 0, sum = -300;
          for (int t = 0; t < 3; ++t) {
            const int v = x[i / 64 * 128 + taps[t] + i % 64];
            most = std::max(most, v), sum += v;
          }
          const float factor = scaled ? scale[i / 4] : 0.3f;
          const int mean =
              static_cast<int>(std::clamp<float>(rounded(static_cast<float>(sum) * factor) + 60.0f, 0.0f, 255.0f));
          const bool is_pixel = !with_valid || (valid[i / 64] >> (i / 4 % 16) & 1);
          const int want = !is_pixel ? 60 : is_max ? most : mean;
          check(y[i] == want, kernels.name, ": pool_row: ", int(y[i]), " is not ", want);
        }
      }
}

void test_depthwise(const Int8Kernels& kernels, Random& random) {
  if (!kernels.depthwise_row) return;
  constexpr int64_t count = 3, vectors = 12, channel = 4;
  for (int64_t paired : {0, 1, 2, 5, 13})
    for (bool with_valid : {true, false})
      for (uint8_t most : {uint8_t{255}, uint8_t{0}}) {  // or random
        const Buffer<uint8_t> x(most ? std::vector<uint8_t>(vectors * 64, most) : random_bytes(random, vectors * 64));
        const Buffer<uint8_t> y(count * 64);
        const Buffer<int32_t> taps(2 * paired);
        const Buffer<int16_t> weights(8 * paired);
        const Buffer<uint16_t> valid(count);
        const Int8LayerEpilogue end(random, 2 * channel, false, false);
        for (int64_t t = 0; t < 2 * paired; ++t)
          taps[t] = static_cast<int32_t>(64 * pick(random, vectors - 2 * count + 1));
        for (int64_t i = 0; i < 8 * paired; ++i)
          weights[i] = static_cast<int16_t>(pick(random, 4) ? pick(random, 256) - 128 : pick(random, 2) ? 127 : -128);
        for (int64_t i = 0; i < count; ++i) valid[i] = static_cast<uint16_t>(random());
        cpu::Int8DepthwiseRow row{};
        row.x = x.data();
        row.taps = taps.data();
        row.weights = weights.data();
        row.paired = paired;
        row.step = 128;
        row.y = y.data();
        row.count = count;
        row.epilogue = &end.end;
        row.channel = channel;
        row.valid = with_valid ? valid.data() : nullptr;
        kernels.depthwise_row(row);
        for (int64_t i = 0; i < count * 64; ++i) {
          const int64_t j = i % 4;
          int32_t sum = end.bias[channel + j];
          for (int64_t t = 0; t < 2 * paired; ++t)
            sum += weights[t / 2 * 8 + 2 * j + t % 2] * x[taps[t] + i / 64 * row.step + i % 64];
          const bool is_pixel = !with_valid || (valid[i / 64] >> (i / 4 % 16) & 1);
          const int want = is_pixel ? end.byte(channel + j, sum, nullptr) : end.end.zero_point;
          check(y[i] == want, kernels.name, ": depthwise_row of ", paired, " paired: ", int(y[i]), " is not ", want);
        }
      }
}

void test_casts(const Int8Kernels& kernels, Random& random) {
  const int64_t count = 3;
  std::vector<float> values = inputs<float>(random, 4 * count * 16, true);
  values[5] = 1e30f, values[6] = -1e30f;
  const Buffer<float> real(values), back(4 * count * 16);
  const Buffer<uint8_t> quads(count * 64);
  const Buffer<uint8_t> theta(std::vector<uint8_t>{0, 130, 255, 128});
  for (bool with_theta : {false, true})
    for (int present : {4, 1}) {
      cpu::Int8Cast cast{};
      cast.quads = quads.data();
      for (int j = 0; j < present; ++j) cast.real[j] = real.data() + j * count * 16;
      cast.count = count;
      cast.scale = 37.0f;
      cast.zero_point = 128;
      cast.theta = with_theta ? theta.data() : nullptr;
      kernels.quantize(cast);
      for (int64_t i = 0; i < count * 64; ++i) {
        const int64_t j = i % 4;
        float v = j < present ? real[j * count * 16 + i / 4] : 0.0f;
        v = v != v ? 0.0f : std::clamp(v * 37.0f, -1e9f, 1e9f);
        int want = static_cast<int>(std::clamp<double>(double(rounded(v)) + 128, 0, 255));
        if (with_theta && want < theta[j]) want = 128;
        check(quads[i] == want, kernels.name, ": quantize: ", int(quads[i]), " is not ", want);
      }
    }
  cpu::Int8Cast cast{};
  cast.quads = quads.data();
  for (int j = 0; j < 4; ++j) cast.real[j] = back.data() + j * count * 16;
  cast.count = count;
  cast.scale = 0.1f;
  cast.zero_point = 77;
  kernels.dequantize(cast);
  for (int64_t i = 0; i < count * 64; ++i)
    check(back[i % 4 * count * 16 + i / 4] == static_cast<float>(quads[i] - 77) * 0.1f, kernels.name, ": dequantize");

  const Buffer<uint8_t> x(random_bytes(random, 7 * 64));
  const Buffer<int32_t> sums(64);
  kernels.lane_sums(x.data(), 2, 3, 4 * 64, sums.data());
  for (int i = 0; i < 64; ++i) {
    int want = 0;
    for (int v : {0, 1, 2, 4, 5, 6}) want += x[v * 64 + i % 16 * 4 + i / 16];
    check(sums[i] == want, kernels.name, ": lane_sums");
  }
}

void test_all(const Int8Kernels& kernels) {
  Random random(29);
  test_vector(kernels, random);
  test_pools(kernels, random);
  test_depthwise(kernels, random);
  test_casts(kernels, random);
}

}  // namespace

void test_engine_int8_rows(const Kernels&) { for_each_int8_table(test_all); }

}  // namespace secateur::test
