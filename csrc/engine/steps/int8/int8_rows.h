// int8 rows: a value's memory holds the features of each image as bytes, padded to whole quads.
#pragma once

#include "block_weights.h"
#include "engine/program/program.h"
#include "engine/steps/step.h"

namespace secateur::engine {

inline int64_t row_bytes(int64_t features) { return whole_quads(features) * 4; }
inline uint8_t* bytes_of(const Call& call, int value, int64_t image, int64_t features) {
  return reinterpret_cast<uint8_t*>(call.rows[value]) + image * row_bytes(features);
}

// clamp(round(v) + zero_point, 0, 255), halves to even; NaN becomes zero_point.
inline uint8_t byte_of(float v, int32_t zero_point) {
  if (v != v) return static_cast<uint8_t>(zero_point);
  // Adding 1.5 * 2^23 to a small number rounds it.
  constexpr float rounder = 12582912.0f;
  const float limited = std::min(std::max(v, -1024.0f), 1024.0f) + rounder;
  return static_cast<uint8_t>(std::clamp(static_cast<int32_t>(limited - rounder) + zero_point, 0, 255));
}

std::unique_ptr<Step> make_block_linear(const Op& op, const cpu::EngineKernels& kernels, const cpu::Int8Kernels& quads);
// Float rows -> bytes; and from bytes of `x` back to floats.
std::unique_ptr<Step> make_rows_quantize(const Op& op, int64_t features);
std::unique_ptr<Step> make_rows_dequantize(const Op& op, const Quant& x, int64_t features);

}  // namespace secateur::engine
