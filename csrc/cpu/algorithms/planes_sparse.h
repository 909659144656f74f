// Sparse weights over planes. Each output channel has R x C sums in registers. Each nonzero takes one broadcast and
// R * C fused multiply-adds, each with an aligned operand from memory.
//
// Loads per cycle are the limit, so a tile's input must stay in the first-level cache: input channels are cut into
// chunks, and sums wait in scratch in between. Sums follow the order of the nonzeros, on any thread.
#pragma once

#include <cstring>

#include "planes_tile.h"

namespace secateur::cpu {
namespace {

template <int R, int C, int Step>
inline void multiply_nonzero(Sums<R, C>& sum, f32x16 w, const float* x, int64_t x_row) {
  SECATEUR_UNROLL
  for (int i = 0; i < R * C; ++i) sum.at[i] = multiply_add(w, load(x + i / C * x_row + i % C * (16 * Step)), sum.at[i]);
}

// First the one to three left over, then four at a time: one load for four offsets, one for four weights (a broadcast
// from memory takes a load away from a multiply-add: 2 to 10 % of the time). Out-of-order execution overlaps the next
// row's nonzeros with this one's. Three sums are too few for that, so they use two sets.
template <int R, int C, int Step>
inline void sum_nonzeros(Sums<R, C>& sum, const uint16_t* offset, const float* weight, int64_t count, const float* x,
                         int64_t x_row) {
  int64_t n = 0;
  const auto single = [&] {
    multiply_nonzero<R, C, Step>(sum, splat(weight[n]), x + int64_t{offset[n]} * 16, x_row);
    ++n;
  };
  switch (count % 4) {
    case 3: single(); [[fallthrough]];
    case 2: single(); [[fallthrough]];
    case 1: single();
  }
  const auto four = [&](Sums<R, C>& odd) {
    const f32x4s w = load_four(weight + n);
    uint64_t at;
    std::memcpy(&at, offset + n, sizeof at);
    multiply_nonzero<R, C, Step>(sum, splat_one<0>(w), x + (at & 0xffff) * 16, x_row);
    multiply_nonzero<R, C, Step>(odd, splat_one<1>(w), x + (at >> 16 & 0xffff) * 16, x_row);
    multiply_nonzero<R, C, Step>(sum, splat_one<2>(w), x + (at >> 32 & 0xffff) * 16, x_row);
    multiply_nonzero<R, C, Step>(odd, splat_one<3>(w), x + (at >> 48) * 16, x_row);
  };
  if constexpr (R * C <= 3) {
    Sums<R, C> odd;
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) odd.at[i] = splat(0.0f);
    for (; n < count; n += 4) four(odd);
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) sum.at[i] = add(sum.at[i], odd.at[i]);
  } else {
    for (; n < count; n += 4) four(sum);
  }
}

// Prefetches the vectors that the next row writes, and this row's share of the input of a later call. Not inlined: most
// plans need neither, and rows are short.
[[gnu::noinline]] inline void fetch_row(const SparsePlanes& tile, int64_t i, int64_t rows, int64_t columns) {
  asm volatile("");  // otherwise GCC drops the call, which has no visible effect
  if (tile.out.fetch && tile.out.last && i + 1 < tile.row_count)
    fetch_output(tile.out, tile.rows[i + 1].channel, rows, columns);
  const Ahead& ahead = tile.ahead;
  if (!ahead.x) return;
  const int64_t end = (i + 1) * ahead.planes_a_row >> 16;
  for (int64_t p = i * ahead.planes_a_row >> 16; p < end; ++p)
    for (int64_t r = 0; r < ahead.rows; ++r)
      for (int64_t c = 0; c < ahead.columns; ++c)
        __builtin_prefetch(ahead.x + p * ahead.plane + r * ahead.row + c * 16, 0, 2);
}

template <int R, int C, int Step>
void sparse_planes(const SparsePlanes& tile) {
  const TileEpilogue end(tile.out.activation);
  const bool fetches = (tile.out.fetch && tile.out.last) || tile.ahead.x;
  for (int64_t i = 0; i < tile.row_count; ++i) {
    const SparseRow& row = tile.rows[i];
    if (fetches) [[unlikely]]
      fetch_row(tile, i, R, C);
    Sums<R, C> sum;
    begin_tile<R, C>(sum, tile.out, row.channel);
    sum_nonzeros<R, C, Step>(sum, tile.offsets + row.begin, tile.weights + row.begin, row.count, tile.x + row.base * 16,
                             tile.x_row);
    end_tile<R, C>(sum, tile.out, end, row.slot, row.channel);
  }
}

// C = 1 has no neighbours in its row, so one function serves every column step.
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
