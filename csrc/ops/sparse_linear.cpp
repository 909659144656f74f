#include <algorithm>
#include <array>

#include "cpu/dispatch.h"
#include "scratch.h"
#include "sparse_common.h"
#include "transpose.h"

namespace secateur::ops {
namespace {

thread_local Scratch input_scratch, output_scratch, partial_scratch;

// Columns [begin, end) of [rows, columns] -> [columns, pitch], zeros beyond the last row.
void transpose_in(const float* from, int64_t rows, int64_t columns, float* to, int64_t begin, int64_t end,
                  int64_t pitch) {
  transpose(from + begin, columns, rows, end - begin, to + begin * pitch, pitch);
  if (rows < pitch)
    for (int64_t c = begin; c < end; ++c) std::fill(to + c * pitch + rows, to + (c + 1) * pitch, 0.0f);
}

// One input vector: a dot product for each neuron.
void run_vector(const SparseLayer& layer, const cpu::Kernels& kernels, const float* x, const float* bias, float* y) {
  const auto& linear = layer.linear();
  const SparseWeight& w = layer.weight();
  const int64_t neurons = w.shape.neurons;
  const int64_t grain = neurons * kGrain / (w.nonzeros() + neurons) + 1;
  parallel_for(0, neurons, grain, [&](int64_t begin, int64_t end) {
    kernels.sparse_dot({linear.taps.data(), w.start.data(), begin, end, x, bias, y});
  });
}

// A block of input vectors in the lanes: x is transposed to [C, 16 T], then the convolution's kernel runs.
struct Batch {
  const SparseLayer& layer;
  const cpu::Kernels& kernels;
  const float* x;
  const float* bias;
  float* y;
  int64_t count;  // input vectors
};

// Vectors of kLinearChunk inputs in a chunk: its input stays in or near the first-level cache.
constexpr int64_t kChunkVectors = 8;

// Neurons per block, so that the sums between chunks stay in the second-level cache.
constexpr int64_t kNeurons = 512;

// Neurons [k0, k1) for the input vectors [begin, end), which are in the lanes of `planes`.
void run_neurons(const Batch& batch, const float* planes, int64_t begin, int64_t end, int64_t tile, int64_t k0,
                 int64_t k1) {
  const auto& linear = batch.layer.linear();
  const int64_t neurons = batch.layer.weight().shape.neurons, pitch = tile * 16;
  float* out = output_scratch.floats(kNeurons * pitch);
  const cpu::StoreRun whole{0, 16, 0};
  cpu::SparseTile t{};
  t.taps = linear.taps.data();
  t.x = planes;
  t.scale = pitch;
  t.bias = batch.bias;
  t.partial = partial_scratch.floats(kNeurons * pitch);
  t.runs = &whole;
  t.dense_count = pitch;
  t.y_stride = pitch;
  const int64_t step = std::max<int64_t>(kChunkVectors / tile, 1);
  for (; k0 < k1; k0 = t.k_end) {
    t.k_begin = k0;
    t.k_end = std::min(k0 + kNeurons, k1);
    t.y = out - k0 * pitch;
    for (int64_t chunk = 0; chunk < linear.chunks; chunk += step) {
      const int64_t next = std::min(chunk + step, linear.chunks);
      t.start = linear.bounds.data() + chunk * neurons;
      t.end = linear.bounds.data() + next * neurons;
      t.first = chunk == 0;
      t.last = next == linear.chunks;
      batch.kernels.sparse_tile[tile](t);
    }
    transpose(out, pitch, t.k_end - k0, end - begin, batch.y + begin * neurons + k0, neurons);
  }
}

// The batch alone fixes the tile, and the tile fixes the order of a sum, so results do not depend on the threads. Many
// blocks of input vectors are distributed over the threads; few blocks are each split by neurons.
void run_batch(const Batch& batch) {
  const int64_t channels = batch.layer.weight().shape.channels, neurons = batch.layer.weight().shape.neurons;
  const int64_t tile = std::min<int64_t>({(batch.count + 15) / 16, 4, batch.kernels.max_tile});
  const int64_t pitch = tile * 16, blocks = (batch.count + pitch - 1) / pitch;
  batch.layer.linear();
  if (blocks >= num_threads()) {
    parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
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
    parallel_for(0, channels, kGrain / pitch + 1, [&](int64_t c0, int64_t c1) {
      transpose_in(batch.x + begin * channels, end - begin, channels, planes, c0, c1, pitch);
    });
    parallel_for(0, neurons, grain,
                 [&](int64_t k0, int64_t k1) { run_neurons(batch, planes, begin, end, tile, k0, k1); });
  }
}

// Other dtypes: torch's own layer on the dense weight.
Tensor linear_dense(const Tensor& x, const Tensor& mask, const Tensor& values, const std::optional<Tensor>& bias) {
  const int64_t sizes[] = {mask.size(0), x.size(x.dim() - 1)};
  const Tensor weight = dense_weight("sparse_linear", mask, values, {sizes, 2});
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor sparse_linear(const Tensor& x, const Tensor& mask, const Tensor& values, std::optional<Tensor> bias,
                     int64_t plan) {
  const char* op = "sparse_linear";
  check(x.is_cpu(), op, ": x must be on the CPU");
  check_floating(op, "x", x);
  check(x.dim() >= 1, op, ": x must be [..., C], got a 0-d tensor");
  check(mask.dim() == 2, op, ": mask must be [K, bytes], got ", show(mask.sizes()));
  const int64_t inputs = x.size(x.dim() - 1), neurons = mask.size(0);
  check(x.scalar_type() == values.scalar_type(), op, ": values must have the dtype of x, ", name(x.scalar_type()),
        ", got ", name(values.scalar_type()));
  check_bias(op, bias, neurons, x.scalar_type());
  if (x.scalar_type() != ScalarType::Float) return linear_dense(x, mask, values, bias);
  const auto layer = layer_of(op, plan, mask, values, {neurons, inputs}, {});
  const float* bias_of = bias_data(op, bias, neurons);

  std::vector<int64_t> out_shape(x.sizes().begin(), x.sizes().end());
  out_shape.back() = neurons;
  Tensor y = torch::stable::new_empty(x, {out_shape.data(), out_shape.size()});
  if (y.numel() == 0) return y;
  const int64_t count = y.numel() / neurons;

  const Tensor dense = x.is_contiguous() ? x : torch::stable::contiguous(x);
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
