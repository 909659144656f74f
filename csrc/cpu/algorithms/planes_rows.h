// Rows of vectors: pooling, arithmetic between planes, and moves between lanes.
#pragma once

#include <limits>

#include "planes_activation.h"

namespace secateur::cpu {
namespace {

inline uint32_t valid_lanes(const uint16_t* valid, int64_t i) { return valid ? valid[i] : 0xffffu; }

inline void pool_row(const PoolRow& row) {
  for (int64_t i = 0; i < row.count; ++i) {
    const float* x = row.x + i * row.step;
    f32x16 v;
    if (row.is_max) {
      v = splat(-std::numeric_limits<float>::infinity());
      for (int64_t t = 0; t < row.tap_count; ++t) v = max_of(v, load(x + row.taps[t]));
    } else {
      v = splat(0.0f);
      for (int64_t t = 0; t < row.tap_count; ++t) v = add(v, load(x + row.taps[t]));
      v = mul(v, row.scale ? load(row.scale + 16 * i) : splat(row.factor));
    }
    store(row.y + 16 * i, keep(v, valid_lanes(row.valid, i)));
  }
}

inline void map_row(const MapRow& row) {
  const f32x16 scale = splat(row.scale), shift = splat(row.shift);
  const f32x16 theta = splat(row.activation.act == Act::kThreshold ? row.activation.theta[row.channel] : 0.0f);
  with_activation(row.activation.act, [&](auto of) {
    for (int64_t i = 0; i < row.count; ++i) {
      f32x16 v = multiply_add(scale, load(row.a + 16 * i), shift);
      if (row.join == Binary::kAdd) v = add(v, load(row.b + 16 * i));
      if (row.join == Binary::kMultiply) v = mul(v, load(row.b + 16 * i));
      v = activated<decltype(of)::act>(v, row.activation.lo, row.activation.hi, theta);
      store(row.y + 16 * i, keep(v, valid_lanes(row.valid, i)));
    }
  });
}

inline void copy_halo(float* plane, const HaloCopy* copies, int64_t count, const LanePerm* perms, float fill) {
  const f32x16 outside = splat(fill);
  for (int64_t i = 0; i < count; ++i) {
    const HaloCopy& copy = copies[i];
    store(plane + int64_t{copy.to} * 16, permute(plane + int64_t{copy.from} * 16, perms[copy.perm].lane, outside));
  }
}

inline void gather(float* to, const float* from, const int32_t* index, int64_t count, float fill) {
  for (int64_t i = 0; i < count; ++i) to[i] = index[i] < 0 ? fill : from[index[i]];
}

inline void lane_sums(const float* x, int64_t rows, int64_t columns, int64_t row_stride, float* sums) {
  f32x16 sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for (int64_t r = 0; r < rows; ++r, x += row_stride) {
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4)
      for (int j = 0; j < 4; ++j) sum[j] = add(sum[j], load(x + 16 * (c + j)));
    for (int j = 0; c < columns; ++c, ++j) sum[j] = add(sum[j], load(x + 16 * c));
  }
  store(sums, add(add(sum[0], sum[2]), add(sum[1], sum[3])));
}

}  // namespace
}  // namespace secateur::cpu
