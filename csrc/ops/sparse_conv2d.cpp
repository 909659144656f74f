#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/dispatch.h"
#include "scratch.h"
#include "sparse_common.h"

namespace secateur::ops {
namespace {

struct Image {
  const float* data;
  int64_t channel_stride, row_stride, column_stride;
};

// Planes [begin, end) of one image. Writes every float of them.
void pack_planes(const Planes& p, const ConvShape& conv, const Image& x, float* planes, int64_t begin, int64_t end) {
  const int64_t phases = static_cast<int64_t>(p.phase_a.size());
  for (int64_t i = begin; i < end; ++i) {
    float* plane = planes + p.lead + i * p.plane;
    const int64_t a = p.phase_a[i % phases], b = p.phase_b[i % phases];
    const float* from = x.data + i / phases * x.channel_stride + a * x.row_stride + b * x.column_stride;
    const int64_t rows = a < p.height ? (p.height - a + conv.stride[0] - 1) / conv.stride[0] : 0;
    const int64_t columns = b < p.width ? (p.width - b + conv.stride[1] - 1) / conv.stride[1] : 0;
    const int64_t down = x.row_stride * conv.stride[0], across = x.column_stride * conv.stride[1];
    std::fill(plane, plane + p.top * p.pitch, 0.0f);
    float* to = plane + p.top * p.pitch;
    for (int64_t r = 0; r < rows; ++r, to += p.pitch, from += down) {
      if (across == 1) std::memcpy(to, from, columns * sizeof(float));
      else
        for (int64_t c = 0; c < columns; ++c) to[c] = from[c * across];
      std::fill(to + columns, to + p.pitch, 0.0f);
    }
    std::fill(to, plane + p.plane, 0.0f);
  }
}

// Writes the zeros before the first plane and after the last one.
void pack_edges(const Planes& p, float* planes) {
  std::fill(planes, planes + p.lead, 0.0f);
  std::fill(planes + p.lead + p.planes() * p.plane, planes + p.total, 0.0f);
}

struct Run {
  const SparseLayer& layer;
  const ConvPlan& plan;
  const cpu::Kernels& kernels;
  const float* bias;
};

// Neurons [k0, k1) of one tile of one image, chunk by chunk.
void run_tile(const Run& run, const float* planes, float* y, int64_t tile, int64_t k0, int64_t k1, float* partial) {
  const TapStream& stream = run.plan.stream;
  const TileStores& stores = run.plan.stores;
  const int64_t neurons = run.layer.weight().shape.neurons;
  cpu::SparseTile t{};
  t.taps = stream.taps.data();
  t.k_begin = k0;
  t.k_end = k1;
  t.x = planes + tile * stores.tile * 16;
  t.scale = 1;
  t.bias = run.bias;
  t.partial = partial;
  t.runs = stores.runs.data() + stores.start[tile];
  t.run_count = stores.start[tile + 1] - stores.start[tile];
  const Planes& p = run.plan.planes;
  if (p.pitch == p.out_width) t.dense_count = std::min(stores.tile * 16, p.positions() - tile * stores.tile * 16);
  t.y = y;
  t.y_stride = p.out_height * p.out_width;
  for (int64_t chunk = 0; chunk < stream.chunks; ++chunk) {
    t.start = stream.start.data() + chunk * (neurons + 1);
    t.end = t.start + 1;
    t.first = chunk == 0;
    t.last = chunk == stream.chunks - 1;
    run.kernels.sparse_tile[stores.tile](t);
  }
}

int64_t partial_floats(const ConvPlan& plan, int64_t neurons) {
  return plan.stream.chunks > 1 ? neurons * plan.stores.tile * 16 : 0;
}

thread_local Scratch planes_scratch, partial_scratch;

// One image per thread: planes stay in the cache of the core that reads them, and no thread waits for another.
void run_by_image(const Run& run, const Image& first, int64_t image_stride, int64_t images, float* y) {
  const ConvPlan& plan = run.plan;
  const int64_t neurons = run.layer.weight().shape.neurons;
  const int64_t out = neurons * plan.planes.out_height * plan.planes.out_width;
  parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    float* planes = planes_scratch.floats(plan.planes.total);
    float* partial = partial_scratch.floats(partial_floats(plan, neurons));
    pack_edges(plan.planes, planes);
    for (int64_t n = begin; n < end; ++n) {
      Image x = first;
      x.data += n * image_stride;
      pack_planes(plan.planes, run.layer.conv(), x, planes, 0, plan.planes.planes());
      for (int64_t tile = 0; tile < plan.stores.tiles(); ++tile)
        run_tile(run, planes, y + n * out, tile, 0, neurons, partial);
    }
  });
}

// Images one after another, each shared by all threads: tiles x blocks of neurons.
void run_within_image(const Run& run, const Image& first, int64_t image_stride, int64_t images, float* y) {
  const ConvPlan& plan = run.plan;
  const int64_t neurons = run.layer.weight().shape.neurons, threads = num_threads();
  const int64_t out = neurons * plan.planes.out_height * plan.planes.out_width, tiles = plan.stores.tiles();
  // Enough pieces that threads end together, few enough that each reads its taps once for many positions.
  const int64_t blocks = std::clamp<int64_t>((2 * threads + tiles - 1) / tiles, 1, std::max<int64_t>(neurons / 4, 1));
  const int64_t block = (neurons + blocks - 1) / blocks;
  const int64_t work = (run.layer.weight().nonzeros() + neurons) * plan.planes.positions();
  const int64_t grain = work > 16 * kGrain ? 1 : tiles * blocks;
  float* planes = planes_scratch.floats(plan.planes.total);
  pack_edges(plan.planes, planes);
  for (int64_t n = 0; n < images; ++n) {
    Image x = first;
    x.data += n * image_stride;
    const int64_t plane_grain = kGrain / plan.planes.plane + 1;
    parallel_for(0, plan.planes.planes(), plane_grain, [&](int64_t begin, int64_t end) {
      pack_planes(plan.planes, run.layer.conv(), x, planes, begin, end);
    });
    parallel_for(0, tiles * blocks, grain, [&](int64_t begin, int64_t end) {
      float* partial = partial_scratch.floats(partial_floats(plan, block));
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t k0 = unit / tiles * block, k1 = std::min(k0 + block, neurons);
        if (k0 < k1) run_tile(run, planes, y + n * out, unit % tiles, k0, k1, partial);
      }
    });
  }
}

using Pair = std::vector<int64_t>;

void check_pair(const char* op, const char* argument, const Pair& pair, int64_t least) {
  check(pair.size() == 2 && pair[0] >= least && pair[1] >= least && pair[0] <= INT32_MAX && pair[1] <= INT32_MAX, op,
        ": ", argument, " must be 2 integers of ", least, " to 2^31 - 1, got ", show({pair.data(), pair.size()}));
}

// Other dtypes: torch's own layer on the dense weight.
Tensor conv2d_dense(const Tensor& x, const Tensor& mask, const Tensor& values, const std::optional<Tensor>& bias,
                    const WeightShape& shape, const Pair& stride, const Pair& padding, const Pair& dilation,
                    int64_t groups) {
  const int64_t sizes[] = {shape.neurons, shape.channels, shape.rows, shape.columns};
  const Tensor weight = dense_weight("sparse_conv2d", mask, values, {sizes, 4});
  using torch::stable::detail::from;
  std::array<StableIValue, 7> stack{from(x),       from(weight),   from(bias),  from(stride),
                                    from(padding), from(dilation), from(groups)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::conv2d", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[0]));
}

Tensor sparse_conv2d(const Tensor& x, const Tensor& mask, const Tensor& values, std::optional<Tensor> bias,
                     Pair kernel_size, Pair stride, Pair padding, Pair dilation, int64_t groups, int64_t plan) {
  const char* op = "sparse_conv2d";
  check(x.is_cpu(), op, ": x must be on the CPU");
  check_floating(op, "x", x);
  check(x.dim() == 4, op, ": x must be [N, C, H, W], got ", show(x.sizes()));
  check_pair(op, "kernel_size", kernel_size, 1);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  check(mask.dim() == 2, op, ": mask must be [K, bytes], got ", show(mask.sizes()));
  const int64_t images = x.size(0), channels = x.size(1), neurons = mask.size(0);
  check(groups >= 1 && channels % groups == 0 && neurons % groups == 0, op,
        ": groups must be >= 1 and divide C and K, got groups ", groups, ", C ", channels, ", K ", neurons);

  ConvShape conv;
  conv.groups = groups;
  for (int i = 0; i < 2; ++i) {
    conv.stride[i] = stride[i];
    conv.padding[i] = padding[i];
    conv.dilation[i] = dilation[i];
  }
  const WeightShape shape{neurons, channels / groups, kernel_size[0], kernel_size[1]};
  check(x.scalar_type() == values.scalar_type(), op, ": values must have the dtype of x, ", name(x.scalar_type()),
        ", got ", name(values.scalar_type()));
  check_bias(op, bias, neurons, x.scalar_type());
  output_size(op, shape, conv, x.size(2), x.size(3));  // the same errors for every dtype
  if (x.scalar_type() != ScalarType::Float)
    return conv2d_dense(x, mask, values, bias, shape, stride, padding, dilation, groups);
  const auto layer = layer_of(op, plan, mask, values, shape, conv);
  const float* bias_of = bias_data(op, bias, neurons);
  const cpu::Kernels& kernels = cpu::kernels();
  const auto conv_plan = layer->plan(op, x.size(2), x.size(3), kernels.max_tile);
  const Planes& p = conv_plan->planes;
  Tensor y = torch::stable::new_empty(x, {images, neurons, p.out_height, p.out_width});
  if (y.numel() == 0) return y;

  const Run run{*layer, *conv_plan, kernels, bias_of};
  const Image first{x.const_data_ptr<float>(), x.stride(1), x.stride(2), x.stride(3)};
  float* out = y.mutable_data_ptr<float>();
  if (images >= num_threads()) run_by_image(run, first, x.stride(0), images, out);
  else run_within_image(run, first, x.stride(0), images, out);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(secateur, CPU, m) { m.impl("sparse_conv2d", TORCH_BOX(&sparse_conv2d)); }

}  // namespace secateur::ops
