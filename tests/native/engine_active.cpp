#include <algorithm>

#include "engine_testing.h"

namespace secateur::test {
namespace {

// Values of which about `zeros` in ten are 0, with an occasional NaN if asked for.
std::vector<float> with_zeros(Random& random, int64_t n, unsigned zeros) {
  std::vector<float> v = normals(random, n);
  for (float& each : v)
    if (random() % 10 < zeros) each = random() % 2 ? 0.0f : -0.0f;
  return v;
}

struct List {
  std::vector<float> values;
  std::vector<uint16_t> index, start;
};

// Lists of an image [height][width][group] cut into cells, one image row for each row of the grid.
void test_lists(const Kernels& kernels, Random& random, int64_t group, int64_t channels, unsigned zeros) {
  const int64_t lane_rows = 4, lane_columns = 3, columns = 1 + random() % 5, rows_here = 1 + random() % 4;
  const int64_t width = (lane_columns - 1) * columns + 1 + random() % columns, plane = columns * 16 + 16;
  const std::vector<float> planes = with_zeros(random, channels * plane, zeros);
  const Buffer<float> x(planes), pixels(16 * columns * group);
  const int64_t room = width * group + 16;
  const Buffer<float> values(rows_here * room);
  const Buffer<uint16_t> index(rows_here * room), start(rows_here * (width + 1));
  const Buffer<uint32_t> count(rows_here * 2);
  kernels.engine.active.lists({x.data(), plane, channels, group, columns, rows_here, lane_columns, width, pixels.data(),
                               group, values.data(), index.data(), start.data(), count.data(), room, width + 1, 2});
  for (int64_t row = 0; row < rows_here && row < lane_rows; ++row) {
    int64_t n = 0;
    for (int64_t px = 0; px < width; ++px) {
      const int64_t lane = row * lane_columns + px / columns;
      check(start[row * (width + 1) + px] == n, "lists: start");
      for (int64_t c = 0; c < channels; ++c) {
        const float v = planes[c * plane + px % columns * 16 + lane];
        if (v == 0) continue;
        check(values[row * room + n] == v && index[row * room + n] == px * group + c, "lists: entry");
        ++n;
      }
    }
    check(count[row * 2] == n && start[row * (width + 1) + width] == n, "lists: count");
  }
}

void test_taps(const Kernels& kernels, Random& random, int sums, int64_t kernel_columns, int64_t step) {
  const int64_t group = 16 << random() % 2, width = 1 + random() % 9, count = 1 + random() % 6, out = sums * 16;
  const int64_t first = static_cast<int64_t>(random() % 6) - 4;
  const std::vector<float> image = with_zeros(random, width * group, 6);
  List list;
  for (int64_t i = 0; i < width * group; ++i) {
    if (i % group == 0) list.start.push_back(static_cast<uint16_t>(list.values.size()));
    if (image[i] != 0) list.values.push_back(image[i]), list.index.push_back(static_cast<uint16_t>(i));
  }
  list.start.push_back(static_cast<uint16_t>(list.values.size()));
  const std::vector<float> w = normals(random, kernel_columns * group * out), before = normals(random, count * out);
  const Buffer<float> values(list.values), weights(w), y(before);
  const Buffer<uint16_t> index(list.index), start(list.start);
  kernels.engine.active.taps[sums]({values.data(), index.data(), start.data(),
                                    static_cast<uint32_t>(list.values.size()), width, weights.data(), group,
                                    kernel_columns, first, step, count, y.data()});
  for (int64_t p = 0; p < count; ++p)
    for (int64_t k = 0; k < out; ++k) {
      double sum = before[p * out + k], size = std::fabs(sum);
      int64_t terms = 1;
      for (int64_t s = 0; s < kernel_columns; ++s)
        for (int64_t c = 0; c < group; ++c) {
          const int64_t column = first + p * step + s;
          if (column < 0 || column >= width) continue;
          const double product = double{image[column * group + c]} * w[(s * group + c) * out + k];
          sum += product, size += std::fabs(product), terms += product != 0;
        }
      check(std::fabs(y[p * out + k] - sum) <= 1.2e-7 * double(terms + 2) * size + 1e-30, "taps, pixel " + show(p));
    }
}

void test_pixels(const Kernels& kernels, Random& random, cpu::Act act) {
  const int64_t pixels = 1 + random() % 5, width = 32, channels = 1 + random() % 32;
  const std::vector<float> s = normals(random, pixels * width), b = normals(random, channels);
  const Buffer<float> sums(s), bias(b), theta(channels);
  const cpu::Activation activation = random_activation(random, act, theta, channels);
  kernels.engine.active.pixels({sums.data(), pixels, width, channels, bias.data(), activation.theta, &activation});
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t k = 0; k < width; ++k) {
      if (k >= channels) check(sums[p * width + k] == 0, "pixels: a channel that is none must be 0");
      else check_activated(sums[p * width + k], activation, k, double{s[p * width + k]} + b[k], 1e-6, "pixels");
    }
}

void test_end(const Kernels& kernels, Random& random, cpu::Act act, bool with_residual) {
  const int64_t lanes = 1 + random() % 16, columns = 1 + random() % 3, width = 32, channel = 16,
                channels = 1 + random() % 32, all = channel + channels, plane = columns * 16;
  const std::vector<float> s = normals(random, lanes * columns * width), b = normals(random, all),
                           r = normals(random, all * plane);
  const Buffer<float> sums(s), bias(b), residual(r), y(all * plane), theta(all);
  std::vector<uint16_t> mask(columns);
  for (uint16_t& m : mask) m = static_cast<uint16_t>(random() & ((1u << lanes) - 1));
  const Buffer<uint16_t> valid(mask);
  cpu::TileOut out{};
  out.first = out.last = true;
  out.y = y.data();
  out.y_plane = out.residual_plane = plane;
  out.bias = bias.data();
  out.residual = with_residual ? residual.data() : nullptr;
  out.activation = random_activation(random, act, theta, all);
  out.valid = valid.data();
  kernels.engine.active.end({sums.data(), lanes, columns, width, channel, channels, &out});
  for (int64_t k = channel; k < all; ++k)
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t l = 0; l < 16; ++l) {
        const int64_t at = k * plane + c * 16 + l;
        if (!(mask[c] >> l & 1)) {
          check(y[at] == 0, "end: a lane without a pixel must be 0");
          continue;
        }
        const double sum = double{s[(l * columns + c) * width + k - channel]} + b[k] + (with_residual ? r[at] : 0.0f);
        check_activated(y[at], out.activation, k, sum, 1e-6, "end, channel " + show(k));
      }
}

void test_vector(const Kernels& kernels, Random& random, int sums, int64_t channels, unsigned zeros) {
  const int64_t out = sums * 16;
  const std::vector<float> in = with_zeros(random, channels, zeros), w = normals(random, channels * out);
  const Buffer<float> x(in), weights(w), values(channels + 16), y(out);
  const Buffer<int32_t> index(channels + 16);
  const int64_t count = kernels.engine.active.compress(x.data(), channels, values.data(), index.data());
  check(count == static_cast<int64_t>(std::count_if(in.begin(), in.end(), [](float v) { return v != 0; })), "compress");
  kernels.engine.active.vector[sums]({values.data(), index.data(), count, weights.data(), y.data()});
  for (int64_t k = 0; k < out; ++k) {
    double sum = 0, size = 0;
    for (int64_t c = 0; c < channels; ++c)
      sum += double{in[c]} * w[c * out + k], size += std::fabs(double{in[c]} * w[c * out + k]);
    check(std::fabs(y[k] - sum) <= 1.2e-7 * double(count + 2) * size + 1e-30, "active vector, width " + show(channels));
  }
}

void test_columns(const Kernels& kernels, Random& random, cpu::Act act, int64_t channels, int64_t neurons) {
  const std::vector<float> in = with_zeros(random, channels, 5), b = normals(random, neurons);
  std::vector<uint32_t> starts{0};
  std::vector<uint16_t> row_list;
  std::vector<float> weight_list;
  std::vector<double> sum(neurons), size(neurons);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t k = 0; k < neurons; ++k)
      if (random() % 4 == 0) {
        row_list.push_back(static_cast<uint16_t>(k));
        weight_list.push_back(normals(random, 1)[0]);
        sum[k] += double{weight_list.back()} * in[c];
        size[k] += std::fabs(double{weight_list.back()} * in[c]);
      }
    starts.push_back(static_cast<uint32_t>(row_list.size()));
  }
  const Buffer<float> x(in), weights(weight_list), bias(b), values(channels + 16), sums(neurons), y(neurons),
      theta(neurons);
  const Buffer<int32_t> index(channels + 16);
  const Buffer<uint32_t> start(starts);
  const Buffer<uint16_t> rows(row_list);
  std::fill_n(sums.data(), neurons, 0.0f);
  const int64_t count = kernels.engine.active.compress(x.data(), channels, values.data(), index.data());
  kernels.engine.active.columns(
      {values.data(), index.data(), count, start.data(), rows.data(), weights.data(), sums.data()});
  const cpu::Activation activation = random_activation(random, act, theta, neurons);
  kernels.engine.active.finish(sums.data(), bias.data(), activation.theta, activation, y.data(), neurons);
  for (int64_t k = 0; k < neurons; ++k)
    check_activated(y[k], activation, k, sum[k] + b[k],
                    1.2e-7 * double(channels + 2) * (size[k] + std::fabs(double{b[k]})), "columns, row " + show(k));
}

}  // namespace

void test_engine_active(const Kernels& kernels) {
  Random random(15);
  for (const int64_t group : {16, 32, 64})
    for (const int64_t channels : {int64_t{1}, group - 3, group})
      for (const unsigned zeros : {0u, 5u, 9u, 10u})
        for (int i = 0; i < 4; ++i) test_lists(kernels, random, group, channels, zeros);
  for (const int sums : {1, 2, 4, 8})
    for (const int64_t kernel_columns : {1, 3, 5})
      for (const int64_t step : {1, 2, 3})
        for (int i = 0; i < 4; ++i) test_taps(kernels, random, sums, kernel_columns, step);
  for (const cpu::Act act : all_acts)
    for (int i = 0; i < 4; ++i) test_pixels(kernels, random, act);
  for (const cpu::Act act : all_acts)
    for (const bool residual : {false, true})
      for (int i = 0; i < 4; ++i) test_end(kernels, random, act, residual);
  for (const int sums : {1, 2, 4, 8, 16})
    for (const int64_t channels : {0, 1, 15, 16, 40, 700})
      for (const unsigned zeros : {0u, 5u, 9u, 10u}) test_vector(kernels, random, sums, channels, zeros);
  for (const cpu::Act act : all_acts)
    for (const int64_t neurons : {1, 16, 37}) test_columns(kernels, random, act, 30, neurons);
}

}  // namespace secateur::test
