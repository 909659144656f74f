// The formats and the tile kernel together: a plan, the planes filled by their definition, against a plain convolution.
#include <algorithm>
#include <cmath>

#include "formats/planes.h"
#include "testing.h"

namespace secateur::test {
namespace {

struct Case {
  int64_t k, c, r, s, h, w;  // c: input channels of all groups
  ConvShape conv;
  double zeros;
};

struct Dense {
  std::vector<float> weight;  // [K, C / groups, R, S]
  SparseWeight sparse;
};

Dense random_weight(Random& random, const Case& c) {
  const int64_t per_neuron = c.c / c.conv.groups * c.r * c.s;
  std::normal_distribution<float> normal;
  std::bernoulli_distribution zero(c.zeros);
  std::vector<float> weight(c.k * per_neuron), values;
  const Buffer<uint8_t> mask(c.k * bytes_of(per_neuron));
  std::memset(mask.data(), 0, c.k * bytes_of(per_neuron));
  for (int64_t k = 0; k < c.k; ++k)
    for (int64_t i = 0; i < per_neuron; ++i) {
      if (zero(random)) continue;
      values.push_back(weight[k * per_neuron + i] = normal(random));
      mask[k * bytes_of(per_neuron) + i / 8] |= static_cast<uint8_t>(1 << (i % 8));
    }
  const Buffer<float> stored(values);
  const WeightShape shape{c.k, c.c / c.conv.groups, c.r, c.s};
  return {weight, unpack_weight("test", shape, mask.data(), c.k, bytes_of(per_neuron), stored.data(),
                                static_cast<int64_t>(values.size()))};
}

void fill_planes(const Planes& p, const Case& c, const std::vector<float>& x, float* planes) {
  const int64_t phases = static_cast<int64_t>(p.phase_a.size());
  std::memset(planes, 0, p.total * sizeof(float));
  for (int64_t channel = 0; channel < c.c; ++channel)
    for (int64_t phase = 0; phase < phases; ++phase) {
      float* plane = planes + p.lead + (channel * phases + phase) * p.plane + p.top * p.pitch;
      for (int64_t h = p.phase_a[phase], i = 0; h < c.h; h += c.conv.stride[0], ++i)
        for (int64_t w = p.phase_b[phase], j = 0; w < c.w; w += c.conv.stride[1], ++j)
          plane[i * p.pitch + j] = x[(channel * c.h + h) * c.w + w];
    }
}

void check_output(const Case& c, const Planes& p, const std::vector<float>& x, const std::vector<float>& weight,
                  const float* y, int max_tile) {
  const int64_t per_group = c.c / c.conv.groups, neurons_per_group = c.k / c.conv.groups;
  for (int64_t k = 0; k < c.k; ++k)
    for (int64_t oh = 0; oh < p.out_height; ++oh)
      for (int64_t ow = 0; ow < p.out_width; ++ow) {
        double sum = 0, size = 0;
        for (int64_t i = 0; i < per_group * c.r * c.s; ++i) {
          const int64_t channel = k / neurons_per_group * per_group + i / (c.r * c.s);
          const int64_t h = oh * c.conv.stride[0] - c.conv.padding[0] + i / c.s % c.r * c.conv.dilation[0];
          const int64_t w = ow * c.conv.stride[1] - c.conv.padding[1] + i % c.s * c.conv.dilation[1];
          if (h < 0 || h >= c.h || w < 0 || w >= c.w) continue;
          const double product = double{weight[k * per_group * c.r * c.s + i]} * x[(channel * c.h + h) * c.w + w];
          sum += product;
          size += std::fabs(product);
        }
        const float got = y[(k * p.out_height + oh) * p.out_width + ow];
        check(std::fabs(got - sum) <= 1e-5 * size, "sparse_conv2d: K ", c.k, ", C ", c.c, ", kernel ", c.r, "x", c.s,
              ", image ", c.h, "x", c.w, ", stride ", c.conv.stride[0], "x", c.conv.stride[1], ", max_tile ", max_tile,
              ": output [", k, ", ", oh, ", ", ow, "] is ", got, ", expected ", sum);
      }
}

int64_t test_case(const Kernels& kernels, Random& random, const Case& c, int max_tile) {
  const Dense dense = random_weight(random, c);
  std::normal_distribution<float> normal;
  std::vector<float> x(c.c * c.h * c.w);
  for (float& v : x) v = normal(random);
  const ConvPlan plan = plan_conv("test", dense.sparse, c.conv, c.h, c.w, max_tile);
  const Planes& p = plan.planes;
  const TileStores& stores = plan.stores;

  const Buffer<float> planes(p.total), y(c.k * p.out_height * p.out_width), partial(c.k * stores.tile * 16);
  fill_planes(p, c, x, planes.data());
  const Buffer<cpu::SparseTap> taps(plan.stream.taps);
  for (int64_t tile = 0; tile < stores.tiles(); ++tile)
    for (int64_t chunk = 0; chunk < plan.stream.chunks; ++chunk) {
      const int64_t* start = plan.stream.start.data() + chunk * (c.k + 1);
      cpu::SparseTile t{};
      t.taps = taps.data();
      t.start = start;
      t.end = start + 1;
      t.k_end = c.k;
      t.x = planes.data() + tile * stores.tile * 16;
      t.scale = 1;
      t.partial = partial.data();
      t.first = chunk == 0;
      t.last = chunk == plan.stream.chunks - 1;
      t.runs = stores.runs.data() + stores.start[tile];
      t.run_count = stores.start[tile + 1] - stores.start[tile];
      if (p.pitch == p.out_width) t.dense_count = std::min(stores.tile * 16, p.positions() - tile * stores.tile * 16);
      t.y = y.data();
      t.y_stride = p.out_height * p.out_width;
      kernels.sparse_tile[stores.tile](t);
    }
  check_output(c, p, x, dense.weight, y.data(), max_tile);
  return plan.stream.chunks;
}

ConvShape conv(int64_t groups, int64_t u, int64_t v, int64_t ph, int64_t pw, int64_t dh = 1, int64_t dw = 1) {
  return {groups, {u, v}, {ph, pw}, {dh, dw}};
}

}  // namespace

void test_sparse_conv2d(const Kernels& kernels) {
  Random random(7);
  const std::vector<Case> cases = {
      {4, 3, 3, 3, 8, 8, conv(1, 1, 1, 1, 1), 0.5},       {5, 3, 1, 1, 7, 5, conv(1, 1, 1, 0, 0), 0.5},
      {4, 2, 5, 2, 9, 11, conv(1, 1, 1, 2, 1), 0.7},      {3, 2, 1, 7, 1, 20, conv(1, 1, 1, 0, 3), 0.3},
      {4, 3, 3, 3, 9, 10, conv(1, 2, 2, 1, 1), 0.5},      {4, 3, 7, 7, 17, 15, conv(1, 2, 2, 3, 3), 0.9},
      {4, 3, 1, 1, 9, 10, conv(1, 2, 3, 0, 0), 0.5},      {2, 3, 2, 3, 10, 9, conv(1, 3, 2, 4, 5), 0.4},
      {4, 3, 3, 3, 12, 12, conv(1, 1, 1, 2, 2, 2, 2), 0}, {4, 3, 3, 2, 12, 13, conv(1, 2, 1, 3, 0, 3, 2), 0.5},
      {6, 4, 3, 3, 8, 8, conv(2, 1, 1, 1, 1), 0.5},       {8, 8, 3, 3, 6, 6, conv(8, 2, 2, 1, 1), 0.2},
      {4, 3, 3, 3, 8, 8, conv(1, 1, 1, 1, 1), 1},         {1, 1, 1, 1, 1, 1, conv(1, 1, 1, 0, 0), 0},
      {4, 1, 3, 3, 2, 2, conv(1, 1, 1, 1, 1), 0},         {2, 1, 3, 3, 1, 1, conv(1, 1, 1, 5, 5), 0},
      {3, 2, 3, 3, 32, 32, conv(1, 1, 1, 1, 1), 0.8},  // a plane of 4 KB
  };
  for (const Case& c : cases)
    for (int max_tile = 1; max_tile <= kernels.max_tile; max_tile += max_tile < 4 ? 1 : 5)
      test_case(kernels, random, c, max_tile);
  const int64_t chunks = test_case(kernels, random, {7, 70, 3, 3, 28, 28, conv(1, 1, 1, 1, 1), 0.9}, kernels.max_tile);
  check(chunks > 1, "70 channels of 28x28 went through one chunk: the case of several is not tested");
}

}  // namespace secateur::test
