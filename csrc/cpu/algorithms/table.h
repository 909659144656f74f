// Fills a kernel table from the algorithms. Included last by each isa_*.cpp, after its vocabulary.
#pragma once

#include "mask_apply.h"
#include "planes_table.h"
#include "sparse_dot.h"
#include "sparse_tile.h"
#include "statistics_threshold.h"
#include "threshold_relu.h"

namespace secateur::cpu {
namespace {

constexpr Kernels make_table(const char* name) {
  Kernels table{
      .name = name,
      .mask_apply_16 = mask_apply<uint16_t>,
      .mask_apply_32 = mask_apply<uint32_t>,
      .mask_apply_64 = mask_apply<uint64_t>,
      .row_statistics_f32 = row_statistics<float>,
      .row_statistics_f64 = row_statistics<double>,
      .row_statistics_bf16 = row_statistics<bf16>,
      .row_statistics_f16 = row_statistics<f16>,
      .threshold_row_f32 = threshold_row<float>,
      .threshold_row_f64 = threshold_row<double>,
      .threshold_row_bf16 = threshold_row<bf16>,
      .threshold_row_f16 = threshold_row<f16>,
      .threshold_relu_f32 = threshold_relu<float, float>,
      .threshold_relu_f64 = threshold_relu<double, double>,
      .threshold_relu_bf16 = threshold_relu<bf16, float>,
      .threshold_relu_f16 = threshold_relu<f16, float>,
      .mask_pack = mask_pack,
      .mask_unpack = mask_unpack,
      .max_tile = max_tile,
      .sparse_tile = {},
      .sparse_dot = sparse_dot,
      .engine = make_engine_table(),
  };
  fill_tiles<max_tile>(table.sparse_tile);
  return table;
}

}  // namespace
}  // namespace secateur::cpu
