// Fills a kernel table from the algorithms; included last by each isa_*.cpp, after its vocabulary.
#pragma once

#include "mask_apply.h"
#include "statistics_threshold.h"
#include "threshold_relu.h"

namespace secateur::cpu {
namespace {

constexpr Kernels make_table(const char* name) {
  return {
      .name = name,
      .mask_apply_16 = mask_apply<uint16_t>,
      .mask_apply_32 = mask_apply<uint32_t>,
      .mask_apply_64 = mask_apply<uint64_t>,
      .statistics_f32 = statistics_threshold<float>,
      .statistics_f64 = statistics_threshold<double>,
      .statistics_bf16 = statistics_threshold<bf16>,
      .statistics_f16 = statistics_threshold<f16>,
      .all_finite_f32 = all_finite<float>,
      .all_finite_f64 = all_finite<double>,
      .all_finite_bf16 = all_finite<bf16>,
      .all_finite_f16 = all_finite<f16>,
      .threshold_relu_f32 = threshold_relu<float, float>,
      .threshold_relu_f64 = threshold_relu<double, double>,
      .threshold_relu_bf16 = threshold_relu<bf16, float>,
      .threshold_relu_f16 = threshold_relu<f16, float>,
      .mask_pack = mask_pack,
      .mask_unpack = mask_unpack,
  };
}

}  // namespace
}  // namespace secateur::cpu
