// Rows of quads: pools, depthwise layers, quantize and dequantize.
#pragma once

#include "int8_epilogue.h"

namespace secateur::cpu {
namespace {

// Sums of the four channels of a quad, one by one.
struct ChannelSums {
  i32x16 at[4];
  ChannelSums() {
    for (auto& sum : at) sum = splat_i32(0);
  }
  void add_vector(const uint8_t* x) {
    i32x16 channel[4];
    split_quads(load_quads(x), channel);
    for (int j = 0; j < 4; ++j) at[j] = add(at[j], channel[j]);
  }
};

inline void pool_quads(const Int8PoolRow& row) {
  const quads zero = splat_quad(0x01010101u * static_cast<uint32_t>(row.y_zero_point));
  for (int64_t i = 0; i < row.count; ++i) {
    const uint8_t* x = row.x + i * row.step;
    quads y;
    if (row.is_max) {
      y = load_quads(x + row.taps[0]);
      for (int64_t t = 1; t < row.tap_count; ++t) y = at_least_bytes(y, load_quads(x + row.taps[t]));
    } else {
      ChannelSums sums;
      for (int64_t t = 0; t < row.tap_count; ++t) sums.add_vector(x + row.taps[t]);
      const f32x16 factor = row.scale ? load(row.scale + 16 * i) : splat(row.factor);
      const i32x16 zeros = splat_i32(static_cast<int32_t>(row.tap_count) * row.zero_point);
      i32x16 q[4];
      for (int j = 0; j < 4; ++j) q[j] = round_of(mul(float_of(sub(sums.at[j], zeros)), factor));
      y = join_quads(q, row.y_zero_point);
    }
    store_quads(row.y + 64 * i, row.valid ? blend_quads(zero, y, row.valid[i]) : y);
  }
}

inline void depthwise_quads(const Int8DepthwiseRow& row) {
  const Int8Finish finish(*row.epilogue, row.channel, false);
  for (int64_t i = 0; i < row.count; ++i) {
    const uint8_t* x = row.x + i * row.step;
    pixel_sums sums = splat_pixels(row.epilogue->bias + row.channel);
    for (int64_t t = 0; t < row.paired; ++t)
      add_two_taps(sums, x + row.taps[2 * t], x + row.taps[2 * t + 1], row.weights + 8 * t);
    const quads y = finish.limited(join_pixels(sums, row.epilogue->multiplier + row.channel, row.epilogue->zero_point));
    store_quads(row.y + 64 * i, row.valid ? blend_quads(finish.zero, y, row.valid[i]) : y);
  }
}

inline void quantize_quads(const Int8Cast& row) {
  const quads zero = splat_quad(0x01010101u * static_cast<uint32_t>(row.zero_point));
  const quads theta = splat_quad(row.theta ? quad_at(row.theta) : 0);
  const f32x16 scale = splat(row.scale), widest = splat(kWidest), lowest = splat(-kWidest);
  for (int64_t i = 0; i < row.count; ++i) {
    i32x16 q[4];
    for (int j = 0; j < 4; ++j) {
      // NaN becomes 0: v <= v is false.
      const f32x16 v = row.real[j] ? load(row.real[j] + 16 * i) : splat(0.0f);
      q[j] = round_of(at_most(at_least(mul(keep(v, less_equal(v, v)), scale), lowest), widest));
    }
    quads y = join_quads(q, row.zero_point);
    if (row.theta) y = zero_below(y, theta, zero);
    store_quads(row.quads + 64 * i, row.valid ? blend_quads(zero, y, row.valid[i]) : y);
  }
}

inline void dequantize_quads(const Int8Cast& row) {
  const f32x16 scale = splat(row.scale);
  const i32x16 zero = splat_i32(row.zero_point);
  for (int64_t i = 0; i < row.count; ++i) {
    i32x16 channel[4];
    split_quads(load_quads(row.quads + 64 * i), channel);
    for (int j = 0; j < 4; ++j)
      if (row.real[j]) store(row.real[j] + 16 * i, mul(float_of(sub(channel[j], zero)), scale));
  }
}

inline void quad_lane_sums(const uint8_t* x, int64_t rows, int64_t columns, int64_t row_stride, int32_t* out) {
  ChannelSums sums;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) sums.add_vector(x + r * row_stride + c * 64);
  for (int j = 0; j < 4; ++j) store_i32(out + 16 * j, sums.at[j]);
}

}  // namespace
}  // namespace secateur::cpu
