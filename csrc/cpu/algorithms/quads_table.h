// Fills a table of integer kernels; included last, after a vocabulary and its words for quads.
#pragma once

#include "quads_dense.h"
#include "quads_rows.h"

namespace secateur::cpu {
namespace {

constexpr QuadKernels make_quad_table(const char* name) {
  QuadKernels table{
      .name = name,
      .max_sums = max_block_sums,
      .pairs = pairs,
      .block_planes = {},
      .square_planes = {},
      .block_vector = block_vector,
      .pool_row = pool_quads,
      .depthwise_row = depthwise_pays ? depthwise_quads : nullptr,
      .quantize = quantize_quads,
      .dequantize = dequantize_quads,
      .finish = finish_lanes,
      .lane_sums = quad_lane_sums,
  };
  fill_block_tiles<kTileRows, kTileColumns>(table);
  fill_square_tiles<kTileRows, kTileColumns>(table);
  return table;
}

}  // namespace
}  // namespace secateur::cpu
