// 4x4 blocks over planes of quads. As in planes_dense.h, four output channels x R x C sums stay in registers: each
// loaded vector of x is used by four 1x4 blocks, each 1x4 block by R * C vectors.
#pragma once

#include "int8_sparse.h"

namespace secateur::cpu {
namespace {

template <int R, int C, int Step>
void block4x4_planes(const Block4x4Planes& tile) {
  const Int8Out& out = tile.out;
  for (int64_t i = 0; i < tile.row_count; ++i) {
    const Block4x4Row& row = tile.rows[i];
    int32_t* at = out.sums + int64_t{row.slot} * (R * C * 16);
    BlockSums<R, C> sum[4];
    SECATEUR_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (out.first) splat_sums(sum[j], tile.epilogue->bias[row.channel + j] + shift_of(row.weight_sum[j]));
      else load_sums(sum[j], at + j * (R * C * 16), shift_of(row.weight_sum[j]));
    }
    const uint16_t* offset = tile.offsets + row.begin;
    const uint32_t* weight = tile.weights + int64_t{row.begin} * 4;
    const uint8_t* base = tile.x + row.base * 64;
    const auto load_all = [&](inputs(&in)[R* C], uint16_t vectors) {
      const uint8_t* x = base + int64_t{vectors} * 64;
      SECATEUR_UNROLL
      for (int v = 0; v < R * C; ++v) in[v] = load_inputs(x + v / C * tile.x_row + v % C * (64 * Step));
    };
    uint32_t n = 0;
    if constexpr (needs_int16_safe_blocks) {
      for (; n < 2 * row.paired; n += 2, weight += 8) {
        inputs in[2][R * C];
        load_all(in[0], offset[n]), load_all(in[1], offset[n + 1]);
        SECATEUR_UNROLL
        for (int j = 0; j < 4; ++j) {
          const block w0 = block_of(weight[j]), w1 = block_of(weight[4 + j]);
          SECATEUR_UNROLL
          for (int v = 0; v < R * C; ++v) sum[j].at[v] = dot_pair(sum[j].at[v], w0, in[0][v], w1, in[1][v]);
        }
      }
    }
    for (; n < row.count; ++n, weight += 4) {
      inputs in[R * C];
      load_all(in, offset[n]);
      SECATEUR_UNROLL
      for (int j = 0; j < 4; ++j) {
        const block w = block_of(weight[j]);
        SECATEUR_UNROLL
        for (int v = 0; v < R * C; ++v) sum[j].at[v] = dot(sum[j].at[v], w, in[v]);
      }
    }
    SECATEUR_UNROLL
    for (int j = 0; j < 4; ++j) store_sums(sum[j], at + j * (R * C * 16));
    if (out.last) finish_quad(*tile.epilogue, out, at, row.channel, R, C);
  }
}

template <int R, int C>
constexpr void fill_4x4_tiles(Int8Kernels& table) {
  constexpr int step = C == 1 ? 1 : 2;
  if constexpr (R * C <= max_4x4_sums) {
    table.block4x4_planes[0][R][C] = block4x4_planes<R, C, 1>;
    table.block4x4_planes[1][R][C] = block4x4_planes<R, C, step>;
  }
  if constexpr (C > 1) fill_4x4_tiles<R, C - 1>(table);
  else if constexpr (R > 1) fill_4x4_tiles<R - 1, kTileColumns>(table);
}

}  // namespace
}  // namespace secateur::cpu
