// int8 epilogue: 32-bit sums to bytes or to floats.
#pragma once

#include "cpu/int8.h"
#include "planes_tile.h"

namespace secateur::cpu {
namespace {

// Bound of a value before rounding: it fits 32 bits, also after the zero point is added.
constexpr float kWidest = 1 << 30;

// Epilogue of the four channels of a quad.
struct Int8Finish {
  const Int8Epilogue& end;
  int64_t channel;
  bool has_residual;
  f32x16 multiplier[4], residual_multiplier;
  quads theta, lo, hi, zero;

  Int8Finish(const Int8Epilogue& e, int64_t k, bool residual) : end(e), channel(k), has_residual(residual) {
    for (int j = 0; j < 4; ++j) multiplier[j] = splat(e.multiplier[k + j]);
    residual_multiplier = splat(e.residual_multiplier);
    theta = splat_quad(e.theta ? quad_at(e.theta + k) : 0);
    lo = splat_quad(0x01010101u * e.lo);
    hi = splat_quad(0x01010101u * e.hi);
    zero = splat_quad(0x01010101u * static_cast<uint32_t>(e.zero_point));
  }

  // The sums of channel j start at sums + j * stride.
  template <bool Slow>
  quads bytes(const int32_t* sums, int64_t stride, const uint8_t* residual) const {
    i32x16 q[4];
    i32x16 other[4];
    if (Slow && has_residual) split_quads(load_quads(residual), other);
    SECATEUR_UNROLL
    for (int j = 0; j < 4; ++j) {
      f32x16 v = mul(float_of(load_i32(sums + j * stride)), multiplier[j]);
      if constexpr (Slow) {
        if (has_residual)
          v = add(v, mul(float_of(sub(other[j], splat_i32(end.residual_zero_point))), residual_multiplier));
        v = at_most(at_least(v, splat(-kWidest)), splat(kWidest));
      }
      q[j] = round_of(v);
    }
    return limited(join_quads(q, end.zero_point));
  }
  quads limited(quads y) const {
    y = at_most_bytes(at_least_bytes(y, lo), hi);
    return end.theta ? zero_below(y, theta, zero) : y;
  }
};

template <bool Slow>
inline void finish_bytes(const Int8Out& out, const Int8Finish& finish, const int32_t* sums, int64_t rows,
                         int64_t columns) {
  const int64_t quad = finish.channel / 4, stride = rows * columns * 16;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c, sums += 16) {
      const uint8_t* residual =
          out.residual ? out.residual + quad * out.residual_plane + r * out.residual_row + c * 64 : nullptr;
      quads y = finish.bytes<Slow>(sums, stride, residual);
      if (out.valid) y = blend_quads(finish.zero, y, out.valid[r * out.valid_row + c]);
      store_quads(out.y + quad * out.y_plane + r * out.y_row + c * 64, y);
    }
}

// Epilogue of a quad: sums [4][rows * columns][16]. Not inlined: otherwise every tile would contain this code.
[[gnu::noinline]] inline void finish_quad(const Int8Epilogue& end, const Int8Out& out, const int32_t* sums,
                                          int64_t channel, int64_t rows, int64_t columns) {
  if (!end.real) {
    const Int8Finish finish(end, channel, out.residual != nullptr);
    if (out.residual || end.wide) finish_bytes<true>(out, finish, sums, rows, columns);
    else finish_bytes<false>(out, finish, sums, rows, columns);
    return;
  }
  const int64_t n = rows * columns;
  for (int64_t k = channel; k < channel + 4 && k < end.channels; ++k, sums += n * 16) {
    const f32x16 multiplier = splat(end.multiplier[k]);
    const f32x16 theta = splat(end.activation.act == Act::kThreshold ? end.activation.theta[k] : 0.0f);
    for (int64_t i = 0; i < n; ++i) {
      alignas(64) float v[16];
      store(v, mul(float_of(load_i32(sums + i * 16)), multiplier));
      if (end.activation.act != Act::kNone) activate(v, 1, end.activation, theta);
      f32x16 y = load(v);
      if (out.valid) y = keep(y, out.valid[i / columns * out.valid_row + i % columns]);
      store(reinterpret_cast<float*>(out.y + k * out.y_plane + i / columns * out.y_row + i % columns * 64), y);
    }
  }
}

inline void finish_lanes(const int32_t* sums, const Int8Epilogue& end, int64_t channel, uint8_t* y) {
  Int8Out out{};
  // Offsets the pointer so that finish_quad writes at y.
  out.y_plane = 64;
  out.y = y - (end.real ? channel : channel / 4) * 64;
  finish_quad(end, out, sums, channel, 1, 1);
}

}  // namespace
}  // namespace secateur::cpu
