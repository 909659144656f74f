// Sparse weights over planes: for each output channel R x C sums in registers; for each nonzero one broadcast and R * C
// fused multiply-adds, each with an aligned operand from memory.
//
// Loads a cycle are the limit, so what a tile reads must stay in the first-level cache: input channels come in chunks,
// and sums rest in scratch between them. A sum's order is that of the nonzeros, whoever computes it.
#pragma once

#include "planes_tile.h"

namespace secateur::cpu {
namespace {

template <int R, int C, int Step>
inline void multiply_nonzero(Sums<R, C>& sum, float weight, const float* x, int64_t x_row) {
  const f32x16 w = splat(weight);
  SECATEUR_UNROLL
  for (int i = 0; i < R * C; ++i) sum.at[i] = multiply_add(w, load(x + i / C * x_row + i % C * (16 * Step)), sum.at[i]);
}

// A short tile has too few sums to hide the latency of a multiply-add, so it keeps several sets and adds them up.
template <int R, int C>
constexpr int sets_of = R * C >= 4   ? 1
                        : R * C >= 2 ? 2
                                     : 4;

template <int R, int C, int Step>
inline void sum_nonzeros(Sums<R, C>& sum, const uint16_t* offset, const float* weight, int64_t count, const float* x,
                         int64_t x_row) {
  constexpr int sets = sets_of<R, C>;
  int64_t n = 0;
  if constexpr (sets > 1) {
    Sums<R, C> more[sets - 1];
    for (auto& set : more)
      for (f32x16& s : set.at) s = splat(0.0f);
    for (; n + sets <= count; n += sets) {
      multiply_nonzero<R, C, Step>(sum, weight[n], x + int64_t{offset[n]} * 16, x_row);
      SECATEUR_UNROLL
      for (int j = 1; j < sets; ++j)
        multiply_nonzero<R, C, Step>(more[j - 1], weight[n + j], x + int64_t{offset[n + j]} * 16, x_row);
    }
    for (auto& set : more)
      for (int i = 0; i < R * C; ++i) sum.at[i] = add(sum.at[i], set.at[i]);
  }
  for (; n < count; ++n) multiply_nonzero<R, C, Step>(sum, weight[n], x + int64_t{offset[n]} * 16, x_row);
}

template <int R, int C, int Step>
void sparse_planes(const SparsePlanes& tile) {
  const TileEnd end(tile.out.activation);
  for (int64_t i = 0; i < tile.row_count; ++i) {
    const SparseRow& row = tile.rows[i];
    Sums<R, C> sum;
    begin_tile<R, C>(sum, tile.out, row.slot, row.channel);
    sum_nonzeros<R, C, Step>(sum, tile.offsets + row.begin, tile.weights + row.begin, row.count, tile.x + row.base * 16,
                             tile.x_row);
    end_tile<R, C>(sum, tile.out, end, row.slot, row.channel);
  }
}

// C = 1 has no neighbours in its row, so one function serves every step.
template <int R, int C>
constexpr void fill_sparse_tile(EngineKernels& table) {
  constexpr int step = C == 1 ? 1 : 2;
  if constexpr (R * C <= max_sums) {
    table.sparse_planes[0][R][C] = sparse_planes<R, C, 1>;
    if constexpr (C <= kTileColumns) table.sparse_planes[1][R][C] = sparse_planes<R, C, step>;
  }
}
template <int R, int C>
constexpr void fill_sparse_tiles(EngineKernels& table) {
  fill_sparse_tile<R, C>(table);
  if constexpr (C > 1) fill_sparse_tiles<R, C - 1>(table);
  else if constexpr (R > 1) fill_sparse_tiles<R - 1, R == 2 ? kTileLine : kTileColumns>(table);
}

}  // namespace
}  // namespace secateur::cpu
