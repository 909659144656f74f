// How a tile of sums begins and ends, with sparse and dense weights.
#pragma once

#include <limits>

#include "planes_activation.h"

#ifndef SECATEUR_UNROLL
#ifdef __clang__
#define SECATEUR_UNROLL _Pragma("unroll")
#else
#define SECATEUR_UNROLL _Pragma("GCC unroll 32")
#endif
#endif

namespace secateur::cpu {
namespace {

template <int R, int C>
struct Sums {
  f32x16 at[R * C];
};

// The activations that tiles apply in registers: a clamp (infinite bounds: none) and a threshold.
struct TileEpilogue {
  f32x16 lo, hi;
  bool in_registers, is_threshold;

  explicit TileEpilogue(const Activation& a) : lo(), hi() {
    constexpr float inf = std::numeric_limits<float>::infinity();
    is_threshold = a.act == Act::kThreshold;
    in_registers = is_threshold || a.act == Act::kNone || a.act == Act::kClamp;
    lo = splat(a.act == Act::kClamp ? a.lo : -inf);
    hi = splat(a.act == Act::kClamp || is_threshold ? a.hi : inf);
  }
};

// Prefetches the lines that a channel will write into the first-level cache. Not inlined: most plans do not need it.
[[gnu::noinline]] inline void fetch_output(const TileOut& out, int64_t channel, int64_t rows, int64_t columns) {
  asm volatile("");  // otherwise GCC drops the call, which has no visible effect
  const float* y = out.y + channel * out.y_plane;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) __builtin_prefetch(y + r * out.y_row + c * 16, 1, 3);
}

template <int R, int C>
inline float* scratch_of(const TileOut& out, int64_t slot) {
  return out.scratch + slot * (R * C * 16);
}

template <int R, int C>
inline void begin_tile(Sums<R, C>& sum, const TileOut& out, int64_t channel) {
  // Each chunk is summed from 0 and added to the others at its end: errors grow with the chunks, not with the terms.
  const f32x16 bias = splat(out.first && out.bias ? out.bias[channel] : 0.0f);
  SECATEUR_UNROLL
  for (int i = 0; i < R * C; ++i) sum.at[i] = bias;
}

template <int R, int C>
inline void end_tile(Sums<R, C>& sum, const TileOut& out, const TileEpilogue& end, int64_t slot, int64_t channel) {
  if (!out.first) {
    const float* scratch = scratch_of<R, C>(out, slot);
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) sum.at[i] = add(sum.at[i], load(scratch + 16 * i));
  }
  if (!out.last) {
    float* scratch = scratch_of<R, C>(out, slot);
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) store(scratch + 16 * i, sum.at[i]);
    return;
  }
  if (out.residual) {
    const float* residual = out.residual + channel * out.residual_plane;
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) sum.at[i] = add(sum.at[i], load(residual + i / C * out.residual_row + i % C * 16));
  }
  if (end.is_threshold) {
    const f32x16 theta = splat(out.activation.theta[channel]);
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) sum.at[i] = keep(at_most(sum.at[i], end.hi), ~less(sum.at[i], theta) & 0xffff);
  } else if (end.in_registers) {
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) sum.at[i] = at_most(at_least(sum.at[i], end.lo), end.hi);
  } else {
    alignas(64) float raw[R * C * 16];
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) store(raw + 16 * i, sum.at[i]);
    activate(raw, R * C, out.activation, splat(0.0f));
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) sum.at[i] = load(raw + 16 * i);
  }
  float* y = out.y + channel * out.y_plane;
  if (out.valid) {
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i)
      store(y + i / C * out.y_row + i % C * 16, keep(sum.at[i], out.valid[i / C * out.valid_row + i % C]));
  } else {
    SECATEUR_UNROLL
    for (int i = 0; i < R * C; ++i) store(y + i / C * out.y_row + i % C * 16, sum.at[i]);
  }
}

}  // namespace
}  // namespace secateur::cpu
