// A packed weight and a convolution's geometry, as they might come from a file: refused, or planned and run.
#include <algorithm>
#include <stdexcept>

#include "cpu/kernels.h"
#include "formats/sparse_layer.h"
#include "input.h"

using namespace secateur;
using secateur::fuzz::Input;

namespace {

// Floats that an image's planes and its output may take here: larger ones are right, but slow.
constexpr int64_t kLarge = 1 << 17;

__int128 outputs(int64_t size, int64_t taps, const ConvShape& conv, int i) {
  const __int128 free = __int128{size} + 2 * __int128{conv.padding[i]} - (__int128{taps} - 1) * conv.dilation[i] - 1;
  return free < 0 ? 0 : free / conv.stride[i] + 1;
}

void run_tiles(const SparseLayer& layer, const ConvPlan& plan) {
  const cpu::Kernels& kernels = cpu::kernels();
  const int64_t neurons = layer.weight().shape.neurons;
  const Planes& p = plan.planes;
  const std::vector<float> planes(static_cast<size_t>(p.total), 0.5f);
  std::vector<float> y(static_cast<size_t>(neurons * p.out_height * p.out_width));
  std::vector<float> partial(static_cast<size_t>(neurons * plan.stores.tile * 16));
  for (int64_t tile = 0; tile < plan.stores.tiles(); ++tile)
    for (int64_t chunk = 0; chunk < plan.stream.chunks; ++chunk) {
      cpu::SparseTile t{};
      t.taps = plan.stream.taps.data();
      t.start = plan.stream.start.data() + chunk * (neurons + 1);
      t.end = t.start + 1;
      t.k_end = neurons;
      t.x = planes.data() + tile * plan.stores.tile * 16;
      t.scale = 1;
      t.partial = partial.data();
      t.first = chunk == 0;
      t.last = chunk == plan.stream.chunks - 1;
      t.runs = plan.stores.runs.data() + plan.stores.start[tile];
      t.run_count = plan.stores.start[tile + 1] - plan.stores.start[tile];
      if (p.pitch == p.out_width)
        t.dense_count = std::min(plan.stores.tile * 16, p.positions() - tile * plan.stores.tile * 16);
      t.y = y.data();
      t.y_stride = p.out_height * p.out_width;
      kernels.sparse_tile[plan.stores.tile](t);
    }
}

void run_layer(Input& in, const SparseLayer& layer) {
  const WeightShape& w = layer.weight().shape;
  const ConvShape& conv = layer.conv();
  for (int i = 0; i < 2; ++i) {
    const int64_t height = in.size(1, 20), width = in.size(1, 20);
    const __int128 area = outputs(height, w.rows, conv, 0) * outputs(width, w.columns, conv, 1);
    const __int128 padded = (__int128{std::max<int64_t>(height, 0)} + 2 * conv.padding[0]) *
                            (__int128{std::max<int64_t>(width, 0)} + 2 * conv.padding[1]);
    const __int128 planes = __int128{std::max<int64_t>(w.channels, 1)} * conv.groups *
                            std::min(w.rows, conv.stride[0]) * std::min(w.columns, conv.stride[1]);
    const bool small = planes <= kLarge && padded <= kLarge && planes * padded <= kLarge &&
                       area * std::max<int64_t>(w.neurons, 1) <= kLarge;
    if (!small && area <= INT32_MAX) continue;
    try {
      const auto plan = layer.plan("fuzz", height, width, cpu::kernels().max_tile);
      if (!small) __builtin_trap();  // it cannot have been judged
      run_tiles(layer, *plan);
    } catch (const std::runtime_error&) {
    }
  }
  if (w.rows * w.columns != 1 || w.channels > kLarge || w.neurons > kLarge) return;
  const std::vector<float> x(static_cast<size_t>(w.channels), 0.5f);
  std::vector<float> y(static_cast<size_t>(w.neurons));
  cpu::kernels().sparse_dot(
      {layer.linear().taps.data(), layer.weight().start.data(), 0, w.neurons, x.data(), nullptr, y.data()});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  fuzz::choose_isa(in);
  ConvShape conv;
  conv.groups = in.size(1, 3);
  for (int i = 0; i < 2; ++i) {
    conv.stride[i] = in.size(1, 4);
    conv.padding[i] = in.size(0, 5);
    conv.dilation[i] = in.size(1, 3);
  }
  const int64_t per_group = in.size(0, 6);
  WeightShape shape{per_group, in.size(0, 40), in.size(1, 5), in.size(1, 5)};
  if (conv.groups > 0 && conv.groups < 4 && per_group >= 0 && per_group < 100) shape.neurons *= conv.groups;
  // The mask that the shape asks for, where that is one that there can be; a few bytes are the input's own.
  const auto small = [](int64_t n) { return n >= 0 && n <= 4096; };
  const bool sizes = small(shape.neurons) && small(shape.channels) && small(shape.rows) && small(shape.columns);
  const int64_t per_neuron = sizes ? shape.per_neuron() : 0;
  const bool sane = sizes && per_neuron <= 1 << 12 && shape.neurons <= 64;
  int64_t bytes = sane ? (per_neuron + 7) / 8 : in.within(0, 8), rows = sane ? shape.neurons : 2;
  if (in.one_in(16)) bytes += in.within(-1, 1), rows += in.within(-1, 1);
  bytes = std::max<int64_t>(bytes, 0);
  rows = std::max<int64_t>(rows, 0);
  in.reseed();
  const uint32_t density = static_cast<uint32_t>(in.within(0, 3));
  const bool clear = !in.one_in(8), counted = !in.one_in(8);
  int64_t count = in.within(0, 64);
  std::vector<uint8_t> mask = in.rest(static_cast<size_t>(rows * bytes));
  while (static_cast<int64_t>(mask.size()) < rows * bytes)
    mask.push_back(static_cast<uint8_t>(in.next() & (density > 0 ? in.next() : 0) & (density > 1 ? 255 : in.next())));
  if (clear && sane && per_neuron % 8)
    for (int64_t r = 0; r < rows && bytes > 0; ++r)
      mask[static_cast<size_t>((r + 1) * bytes - 1)] &=
          static_cast<uint8_t>((1 << static_cast<int>(per_neuron % 8)) - 1);
  if (counted) {
    count = 0;
    for (uint8_t byte : mask) count += __builtin_popcount(byte);
  }
  const std::vector<float> values(static_cast<size_t>(count), 0.25f);
  mask.shrink_to_fit();
  try {
    const int64_t id = make_layer(shape, conv, mask.data(), rows, bytes, values.data(), count);
    const auto layer = find_layer(id);
    release_layer(id);
    if (!layer || find_layer(id)) __builtin_trap();
    run_layer(in, *layer);
  } catch (const std::runtime_error&) {  // what it says of a layer that it refuses
  }
  return 0;
}
