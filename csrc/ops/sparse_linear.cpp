#include <algorithm>

#include "../cpu/dispatch.h"
#include "scratch.h"
#include "sparse_common.h"

namespace secateur::ops {
namespace {

thread_local Scratch input_scratch, output_scratch, partial_scratch;

// Columns [begin, end) of [rows, columns] -> [columns, pitch], rows beyond the last one zero; in blocks that stay in
// cache.
void transpose_in(const float* from, int64_t rows, int64_t columns, float* to, int64_t begin, int64_t end,
                  int64_t pitch) {
  constexpr int64_t kBlock = 16;
  for (int64_t c0 = begin; c0 < end; c0 += kBlock)
    for (int64_t r0 = 0; r0 < pitch; r0 += kBlock)
      for (int64_t c = c0; c < std::min(c0 + kBlock, end); ++c)
        for (int64_t r = r0; r < r0 + kBlock; ++r) to[c * pitch + r] = r < rows ? from[r * columns + c] : 0.0f;
}

// One input vector: a dot product for each neuron.
void run_vector(const SparseLayer& layer, const cpu::Kernels& kernels, const float* x, const float* bias, float* y) {
  const auto& linear = layer.linear();
  const SparseWeight& w = layer.weight();
  const int64_t neurons = w.shape.neurons;
  const int64_t grain = neurons * kGrain / (w.nonzeros() + neurons) + 1;
  torch::stable::parallel_for(0, neurons, grain, [&](int64_t begin, int64_t end) {
    kernels.sparse_dot({linear.taps.data(), w.start.data(), begin, end, x, bias, y});
  });
}

// A block of input vectors in the lanes: x is transposed to [C, 16 T], the kernel is the convolution's.
struct Batch {
  const SparseLayer& layer;
  const cpu::Kernels& kernels;
  const float* x;
  const float* bias;
  float* y;
  int64_t count;  // input vectors
};

// Neurons in blocks, so that the sums between chunks stay in the second-level cache.
constexpr int64_t kNeurons = 512;

// Neurons [k0, k1) for the input vectors [begin, end), which stand in the lanes of `planes`.
void run_neurons(const Batch& batch, const float* planes, int64_t begin, int64_t end, int64_t tile, int64_t k0,
                 int64_t k1) {
  const auto& linear = batch.layer.linear();
  const int64_t neurons = batch.layer.weight().shape.neurons, pitch = tile * 16;
  float* out = output_scratch.floats(kNeurons * pitch);
  cpu::StoreRun runs[cpu::kMaxTile];
  for (int64_t t = 0; t < tile; ++t) runs[t] = {static_cast<int32_t>(16 * t), 16, 16 * t};
  cpu::SparseTile t{};
  t.taps = linear.taps.data();
  t.x = planes;
  t.scale = pitch;
  t.bias = batch.bias;
  t.partial = partial_scratch.floats(kNeurons * pitch);
  t.runs = runs;
  t.run_count = tile;
  t.y_stride = pitch;
  for (; k0 < k1; k0 = t.k_end) {
    t.k_begin = k0;
    t.k_end = std::min(k0 + kNeurons, k1);
    t.y = out - k0 * pitch;
    for (int64_t chunk = 0; chunk < linear.chunks; ++chunk) {
      t.start = linear.bounds.data() + chunk * neurons;
      t.end = t.start + neurons;
      t.first = chunk == 0;
      t.last = chunk == linear.chunks - 1;
      batch.kernels.sparse_tile[tile](t);
    }
    for (int64_t b = 0; b < end - begin; ++b)
      for (int64_t k = k0; k < t.k_end; ++k) batch.y[(begin + b) * neurons + k] = out[(k - k0) * pitch + b];
  }
}

// The tile is fixed by the batch alone and a neuron's sum by the tile, so results do not depend on the threads: with
// many blocks of input vectors each has its own, with few they share the neurons.
void run_batch(const Batch& batch) {
  const int64_t channels = batch.layer.weight().shape.channels, neurons = batch.layer.weight().shape.neurons;
  const int64_t tile = std::min<int64_t>({(batch.count + 15) / 16, 4, batch.kernels.max_tile});
  const int64_t pitch = tile * 16, blocks = (batch.count + pitch - 1) / pitch;
  batch.layer.linear();
  if (blocks >= torch::stable::get_num_threads()) {
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      float* planes = input_scratch.floats(channels * pitch);
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i * pitch, end = std::min(begin + pitch, batch.count);
        transpose_in(batch.x + begin * channels, end - begin, channels, planes, 0, channels, pitch);
        run_neurons(batch, planes, begin, end, tile, 0, neurons);
      }
    });
    return;
  }
  float* planes = input_scratch.floats(channels * pitch);
  const int64_t grain = neurons * kGrain / ((batch.layer.weight().nonzeros() + neurons) * tile) + 1;
  for (int64_t begin = 0; begin < batch.count; begin += pitch) {
    const int64_t end = std::min(begin + pitch, batch.count);
    torch::stable::parallel_for(0, channels, kGrain / pitch + 1, [&](int64_t c0, int64_t c1) {
      transpose_in(batch.x + begin * channels, end - begin, channels, planes, c0, c1, pitch);
    });
    torch::stable::parallel_for(0, neurons, grain,
                                [&](int64_t k0, int64_t k1) { run_neurons(batch, planes, begin, end, tile, k0, k1); });
  }
}

Tensor sparse_linear(const Tensor& x, const Tensor& mask, const Tensor& values, std::optional<Tensor> bias,
                     int64_t plan) {
  const char* op = "sparse_linear";
  check_float_cpu(op, "x", x);
  check(x.dim() >= 1, op, ": x must be [..., C], got a 0-d tensor");
  check(mask.dim() == 2, op, ": mask must be [K, bytes], got ", show(mask.sizes()));
  const int64_t inputs = x.size(x.dim() - 1), neurons = mask.size(0);
  const auto layer = layer_of(op, plan, mask, values, {neurons, inputs}, {});
  const float* bias_of = bias_data(op, bias, neurons);

  std::vector<int64_t> out_shape(x.sizes().begin(), x.sizes().end());
  out_shape.back() = neurons;
  Tensor y = torch::stable::new_empty(x, {out_shape.data(), out_shape.size()});
  int64_t count = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) count *= x.size(d);
  if (count == 0 || neurons == 0) return y;

  const Tensor dense = torch::stable::contiguous(x);
  const cpu::Kernels& kernels = cpu::kernels();
  const float* from = dense.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  if (count == 1) run_vector(*layer, kernels, from, bias_of, to);
  else run_batch({*layer, kernels, from, bias_of, to, count});
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(secateur, CPU, m) { m.impl("sparse_linear", TORCH_BOX(&sparse_linear)); }

}  // namespace secateur::ops
