// Fills a table of int8 kernels. Included last, after a vocabulary and its int8 words.
#pragma once

#include "int8_dense.h"
#include "int8_rows.h"

namespace secateur::cpu {
namespace {

constexpr Int8Kernels make_int8_table(const char* name) {
  Int8Kernels table{
      .name = name,
      .max_sums = max_block_sums,
      .needs_int16_safe_blocks = needs_int16_safe_blocks,
      .block_planes = {},
      .block4x4_planes = {},
      .block_vector = block_vector,
      .pool_row = pool_quads,
      .depthwise_row = depthwise_pays ? depthwise_quads : nullptr,
      .quantize = quantize_quads,
      .dequantize = dequantize_quads,
      .finish = finish_lanes,
      .lane_sums = quad_lane_sums,
  };
  fill_block_tiles<kTileRows, kTileColumns>(table);
  fill_4x4_tiles<kTileRows, kTileColumns>(table);
  return table;
}

}  // namespace
}  // namespace secateur::cpu
