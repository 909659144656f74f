// Dense weights over planes: kDenseBlock output channels x R x C sums in registers. Each loaded vector of x is used by
// four weights, each weight by R * C vectors.
#pragma once

#include "planes_tile.h"

namespace secateur::cpu {
namespace {

template <int R, int C, int Step>
void dense_planes(const DensePlanes& tile) {
  const TileEpilogue end(tile.out.activation);
  for (int64_t k = tile.k_begin; k < tile.k_end; k += kDenseBlock) {
    const int64_t slot = k - tile.k_begin;
    const int64_t filled = tile.k_end - k < kDenseBlock ? tile.k_end - k : kDenseBlock;
    if (tile.out.fetch && tile.out.last) [[unlikely]]
      for (int64_t next = k + kDenseBlock; next < k + 2 * kDenseBlock && next < tile.k_end; ++next)
        fetch_output(tile.out, next, R, C);
    Sums<R, C> sum[kDenseBlock];
    SECATEUR_UNROLL
    for (int j = 0; j < kDenseBlock; ++j) {
      if (j < filled) begin_tile<R, C>(sum[j], tile.out, k + j);
      else sum[j] = sum[0];  // computed but never stored
    }
    const float* weight = tile.weights + slot / kDenseBlock * tile.block_stride;
    for (int64_t c = 0; c < tile.channels; ++c) {
      const float* plane = tile.x + c * tile.x_plane;
      for (int64_t t = 0; t < tile.tap_count; ++t, weight += kDenseBlock) {
        const float* x = plane + tile.taps[t];
        f32x16 in[R * C];
        SECATEUR_UNROLL
        for (int i = 0; i < R * C; ++i) in[i] = load(x + i / C * tile.x_row + i % C * (16 * Step));
        SECATEUR_UNROLL
        for (int j = 0; j < kDenseBlock; ++j) {
          const f32x16 w = splat(weight[j]);
          SECATEUR_UNROLL
          for (int i = 0; i < R * C; ++i) sum[j].at[i] = multiply_add(w, in[i], sum[j].at[i]);
        }
      }
    }
    SECATEUR_UNROLL
    for (int j = 0; j < kDenseBlock; ++j)
      if (j < filled) end_tile<R, C>(sum[j], tile.out, end, slot + j, k + j);
  }
}

template <int R, int C>
constexpr void fill_dense_tiles(EngineKernels& table) {
  constexpr int step = C == 1 ? 1 : 2;
  if constexpr (R * C <= max_dense_sums) {
    table.dense_planes[0][R][C] = dense_planes<R, C, 1>;
    table.dense_planes[1][R][C] = dense_planes<R, C, step>;
  }
  if constexpr (C > 1) fill_dense_tiles<R, C - 1>(table);
  else if constexpr (R > 1) fill_dense_tiles<R - 1, kTileColumns>(table);
}

}  // namespace
}  // namespace secateur::cpu
