// 1x4 blocks over planes of quads: as planes_sparse.h, with a dot product of four bytes in place of each
// multiplication. Sums reach the epilogue through memory, because it needs all four channels of a quad. That leaves two
// thirds of the registers for sums.
#pragma once

#include <cstring>

#include "int8_epilogue.h"

namespace secateur::cpu {
namespace {

template <int R, int C>
struct BlockSums {
  i32x16 at[R * C];
};
template <int R, int C>
inline void splat_sums(BlockSums<R, C>& sum, int32_t v) {
  SECATEUR_UNROLL
  for (int i = 0; i < R * C; ++i) sum.at[i] = splat_i32(v);
}
template <int R, int C>
inline void load_sums(BlockSums<R, C>& sum, const int32_t* from, int32_t shift) {
  SECATEUR_UNROLL
  for (int i = 0; i < R * C; ++i)
    sum.at[i] = shifts ? add(load_i32(from + 16 * i), splat_i32(shift)) : load_i32(from + 16 * i);
}
template <int R, int C>
inline void store_sums(const BlockSums<R, C>& sum, int32_t* to) {
  SECATEUR_UNROLL
  for (int i = 0; i < R * C; ++i) store_i32(to + 16 * i, sum.at[i]);
}

template <int R, int C, int Step>
inline void add_block(BlockSums<R, C>& sum, block w, const uint8_t* x, int64_t x_row) {
  SECATEUR_UNROLL
  for (int i = 0; i < R * C; ++i) sum.at[i] = dot(sum.at[i], w, load_inputs(x + i / C * x_row + i % C * (64 * Step)));
}

// Blocks in pairs (int16_safe.h).
template <int R, int C, int Step>
inline void accumulate_paired(BlockSums<R, C>& sum, const uint16_t* offset, const uint32_t* weight, int64_t paired,
                              const uint8_t* x, int64_t x_row) {
  for (; paired > 0; --paired, offset += 2, weight += 2) {
    const block w0 = block_of(weight[0]), w1 = block_of(weight[1]);
    const uint8_t *x0 = x + int64_t{offset[0]} * 64, *x1 = x + int64_t{offset[1]} * 64;
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) {
      const int64_t at = i / C * x_row + i % C * (64 * Step);
      sum.at[i] = dot_pair(sum.at[i], w0, load_inputs(x0 + at), w1, load_inputs(x1 + at));
    }
  }
}

// First the one to three left over, then four at a time, as in sum_nonzeros. Small tiles use two sets of sums.
template <int R, int C, int Step>
inline void sum_blocks(BlockSums<R, C>& sum, const uint16_t* offset, const uint32_t* weight, int64_t count,
                       const uint8_t* x, int64_t x_row) {
  int64_t n = 0;
  const auto single = [&] {
    add_block<R, C, Step>(sum, block_of(weight[n]), x + int64_t{offset[n]} * 64, x_row);
    ++n;
  };
  switch (count % 4) {
    case 3: single(); [[fallthrough]];
    case 2: single(); [[fallthrough]];
    case 1: single();
  }
  const auto four = [&](BlockSums<R, C>& odd) {
    const blocks4 w = load_four_blocks(weight + n);
    uint64_t at;
    std::memcpy(&at, offset + n, sizeof at);
    add_block<R, C, Step>(sum, one_block<0>(w), x + (at & 0xffff) * 64, x_row);
    add_block<R, C, Step>(odd, one_block<1>(w), x + (at >> 16 & 0xffff) * 64, x_row);
    add_block<R, C, Step>(sum, one_block<2>(w), x + (at >> 32 & 0xffff) * 64, x_row);
    add_block<R, C, Step>(odd, one_block<3>(w), x + (at >> 48) * 64, x_row);
  };
  if constexpr (R * C <= 3) {
    BlockSums<R, C> odd;
    splat_sums(odd, 0);
    for (; n < count; n += 4) four(odd);
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) sum.at[i] = add(sum.at[i], odd.at[i]);
  } else {
    for (; n < count; n += 4) four(sum);
  }
}

template <int R, int C, int Step>
void block_planes(const BlockPlanes& tile) {
  const Int8Out& out = tile.out;
  for (int64_t i = 0; i < tile.row_count; ++i) {
    const BlockRow& row = tile.rows[i];
    int32_t* at = out.sums + int64_t{row.slot} * (R * C * 16);
    BlockSums<R, C> sum;
    if (out.first) splat_sums(sum, tile.epilogue->bias[row.channel] + shift_of(row.weight_sum));
    else load_sums(sum, at, shift_of(row.weight_sum));
    const uint8_t* x = tile.x + row.base * 64;
    uint32_t begin = row.begin;
    if constexpr (needs_int16_safe_blocks) {
      accumulate_paired<R, C, Step>(sum, tile.offsets + begin, tile.weights + begin, row.paired, x, tile.x_row);
      begin += 2 * row.paired;
    }
    sum_blocks<R, C, Step>(sum, tile.offsets + begin, tile.weights + begin, row.begin + row.count - begin, x,
                           tile.x_row);
    store_sums(sum, at);
    if (out.last && i % 4 == 3) finish_quad(*tile.epilogue, out, at - 3 * (R * C * 16), row.channel - 3, R, C);
  }
}

inline void block_vector(const BlockVector& layer) {
  for (int64_t i = 0; i < layer.row_count; ++i) {
    const BlockRow& row = layer.rows[i];
    const int32_t start = layer.bias ? layer.bias[row.channel] : layer.sums[row.channel];
    layer.sums[row.channel] =
        start + dot_blocks(layer.offsets + row.begin, layer.weights + row.begin, row.count, layer.x + row.base * 4);
  }
}

template <int R, int C>
constexpr void fill_block_tile(Int8Kernels& table) {
  constexpr int step = C == 1 ? 1 : 2;
  if constexpr (R * C <= max_block_sums) {
    table.block_planes[0][R][C] = block_planes<R, C, 1>;
    if constexpr (C <= kTileColumns) table.block_planes[1][R][C] = block_planes<R, C, step>;
  }
}
template <int R, int C>
constexpr void fill_block_tiles(Int8Kernels& table) {
  fill_block_tile<R, C>(table);
  if constexpr (C > 1) fill_block_tiles<R, C - 1>(table);
  else if constexpr (R > 1) fill_block_tiles<R - 1, R == 2 ? kTileLine : kTileColumns>(table);
}

}  // namespace
}  // namespace secateur::cpu
