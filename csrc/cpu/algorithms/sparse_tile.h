// Sparse weights, dense activations. Each nonzero takes one broadcast and T fused multiply-adds on 16 positions each.
//
// A tile's sums stay in registers for all nonzeros of a neuron. Each multiply-add takes its second operand from memory,
// so loads per cycle are the limit (see csrc/README.md). Sums follow the order of the taps on any thread, so results do
// not depend on the number of threads.
#pragma once

#include "cpu/sparse.h"

#ifdef __clang__
#define SECATEUR_UNROLL _Pragma("unroll")
#else
#define SECATEUR_UNROLL _Pragma("GCC unroll 32")
#endif

namespace secateur::cpu {
namespace {

template <int T>
inline void multiply_tap(f32x16 (&sum)[T], const SparseTap& tap, const float* x, int64_t scale) {
  const f32x16 w = splat(tap.weight);
  const float* at = x + tap.offset * scale;
  SECATEUR_UNROLL
  for (int t = 0; t < T; ++t) sum[t] = multiply_add(w, load(at + 16 * t), sum[t]);
}

// A short tile has too few sums to hide the latency of a multiply-add, so it uses several sets and adds them up.
template <int T>
constexpr int sum_sets = T >= 4   ? 1
                         : T >= 2 ? 2
                                  : 4;

template <int T>
inline void sum_taps(f32x16 (&sum)[T], const SparseTap* tap, const SparseTap* end, const float* x, int64_t scale) {
  constexpr int sets = sum_sets<T>;
  if constexpr (sets > 1) {
    f32x16 more[sets - 1][T];
    for (auto& set : more)
      for (f32x16& s : set) s = splat(0.0f);
    for (; end - tap >= sets; tap += sets) {
      multiply_tap<T>(sum, tap[0], x, scale);
      SECATEUR_UNROLL
      for (int i = 1; i < sets; ++i) multiply_tap<T>(more[i - 1], tap[i], x, scale);
    }
    for (auto& set : more)
      for (int t = 0; t < T; ++t) sum[t] = add(sum[t], set[t]);
  }
  for (; tap < end; ++tap) multiply_tap<T>(sum, *tap, x, scale);
}

// Rows without pad columns between them (1x1 kernels, linear layers): stored straight from the registers.
template <int T>
inline void store_dense(const f32x16 (&sum)[T], float* y, int64_t count) {
  SECATEUR_UNROLL
  for (int t = 0; t < T; ++t) {
    if (count >= 16 * (t + 1)) {
      store(y + 16 * t, sum[t]);
    } else if (count > 16 * t) {
      float last[16];
      store(last, sum[t]);
      store_first(y + 16 * t, last, static_cast<int>(count - 16 * t));
    }
  }
}

template <int T>
void sparse_tile(const SparseTile& tile) {
  alignas(64) float finished[16 * T];
  for (int64_t k = tile.k_begin; k < tile.k_end; ++k) {
    float* partial = tile.partial + (k - tile.k_begin) * 16 * T;
    f32x16 sum[T];
    if (tile.first) {
      const f32x16 bias = splat(tile.bias ? tile.bias[k] : 0.0f);
      SECATEUR_UNROLL
      for (int t = 0; t < T; ++t) sum[t] = bias;
    } else {
      SECATEUR_UNROLL
      for (int t = 0; t < T; ++t) sum[t] = load(partial + 16 * t);
    }
    sum_taps<T>(sum, tile.taps + tile.start[k], tile.taps + tile.end[k], tile.x, tile.scale);
    if (tile.last && tile.dense_count > 0) {
      store_dense<T>(sum, tile.y + k * tile.y_stride + tile.runs[0].to, tile.dense_count);
      continue;
    }
    float* to = tile.last ? finished : partial;
    SECATEUR_UNROLL
    for (int t = 0; t < T; ++t) store(to + 16 * t, sum[t]);
    if (!tile.last) continue;
    float* y = tile.y + k * tile.y_stride;
    for (int64_t i = 0; i < tile.run_count; ++i) {
      const StoreRun& run = tile.runs[i];
      if (run.count == 16) store(y + run.to, load(finished + run.from));
      else store_first(y + run.to, finished + run.from, run.count);
    }
  }
}

// table[T] for T = 1 .. max_tile, the number of sums that the registers of this instruction set hold.
template <int T>
constexpr void fill_tiles(SparseTileFn (&table)[kMaxTile + 1]) {
  table[T] = sparse_tile<T>;
  if constexpr (T > 1) fill_tiles<T - 1>(table);
}

}  // namespace
}  // namespace secateur::cpu
