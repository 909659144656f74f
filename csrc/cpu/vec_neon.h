// The 16-lane vocabulary for NEON (every AArch64 has it): four registers of floats, eight of doubles. Words as in
// vec_scalar.h.
#pragma once

#include <arm_neon.h>

#include "kernels.h"

namespace secateur::cpu {
namespace {

struct f32x16 {
  float32x4_t v[4];
};
struct f64x16 {
  float64x2_t v[8];
};
struct r16x16 {
  uint16x8_t v[2];
};
struct r32x16 {
  uint32x4_t v[4];
};
struct r64x16 {
  uint64x2_t v[8];
};

template <int Size>
struct raw_of;
template <>
struct raw_of<2> {
  using type = r16x16;
};
template <>
struct raw_of<4> {
  using type = r32x16;
};
template <>
struct raw_of<8> {
  using type = r64x16;
};
template <class T>
using raw = typename raw_of<sizeof(T)>::type;

template <class T>
inline raw<T> load_raw(const T* p) {
  raw<T> r;
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(p);
  for (unsigned i = 0; i < sizeof r.v / 16; ++i) {
    uint8x16_t part = vld1q_u8(bytes + 16 * i);
    if constexpr (sizeof(T) == 2) r.v[i] = vreinterpretq_u16_u8(part);
    if constexpr (sizeof(T) == 4) r.v[i] = vreinterpretq_u32_u8(part);
    if constexpr (sizeof(T) == 8) r.v[i] = vreinterpretq_u64_u8(part);
  }
  return r;
}
inline uint8x16_t as_bytes(uint16x8_t v) { return vreinterpretq_u8_u16(v); }
inline uint8x16_t as_bytes(uint32x4_t v) { return vreinterpretq_u8_u32(v); }
inline uint8x16_t as_bytes(uint64x2_t v) { return vreinterpretq_u8_u64(v); }
template <class T, class R>
inline void store_raw(T* p, R r) {
  for (unsigned i = 0; i < sizeof r.v / 16; ++i) vst1q_u8(reinterpret_cast<uint8_t*>(p) + 16 * i, as_bytes(r.v[i]));
}
template <class T>
inline raw<T> splat_raw(T value) {
  raw<T> r;
  for (auto& part : r.v) {
    if constexpr (sizeof(T) == 2) part = vdupq_n_u16(__builtin_bit_cast(uint16_t, value));
    if constexpr (sizeof(T) == 4) part = vdupq_n_u32(__builtin_bit_cast(uint32_t, value));
    if constexpr (sizeof(T) == 8) part = vdupq_n_u64(__builtin_bit_cast(uint64_t, value));
  }
  return r;
}
// All ones in lane i where bit i is set: each lane tests its own bit.
inline r16x16 lanes(r16x16, uint32_t bits) {
  const uint16x8_t low = {1, 2, 4, 8, 16, 32, 64, 128};
  uint16x8_t all = vdupq_n_u16(static_cast<uint16_t>(bits));
  return {{vtstq_u16(all, low), vtstq_u16(all, vshlq_n_u16(low, 8))}};
}
inline r32x16 lanes(r32x16, uint32_t bits) {
  const uint32x4_t own = {1, 2, 4, 8};
  r32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vtstq_u32(vdupq_n_u32(bits >> (4 * i)), own);
  return r;
}
inline r64x16 lanes(r64x16, uint32_t bits) {
  const uint64x2_t own = {1, 2};
  r64x16 r;
  for (int i = 0; i < 8; ++i) r.v[i] = vtstq_u64(vdupq_n_u64(bits >> (2 * i)), own);
  return r;
}
inline uint16x8_t choose(uint16x8_t on, uint16x8_t a, uint16x8_t b) { return vbslq_u16(on, a, b); }
inline uint32x4_t choose(uint32x4_t on, uint32x4_t a, uint32x4_t b) { return vbslq_u32(on, a, b); }
inline uint64x2_t choose(uint64x2_t on, uint64x2_t a, uint64x2_t b) { return vbslq_u64(on, a, b); }
template <class R>
inline R keep(R r, uint32_t bits) {
  R on = lanes(r, bits);
  for (unsigned i = 0; i < sizeof r.v / 16; ++i) r.v[i] = r.v[i] & on.v[i];
  return r;
}
template <class R>
inline R blend(R off, R on, uint32_t bits) {
  R mask = lanes(off, bits);
  for (unsigned i = 0; i < sizeof off.v / 16; ++i) off.v[i] = choose(mask.v[i], on.v[i], off.v[i]);
  return off;
}

inline f32x16 load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
inline f32x16 load(const bf16* p) {
  f32x16 r;
  for (int i = 0; i < 4; ++i) {
    uint16x4_t part = vld1_u16(reinterpret_cast<const uint16_t*>(p) + 4 * i);
    r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(part, 16));
  }
  return r;
}
inline f32x16 load(const f16* p) {
  f32x16 r;
  for (int i = 0; i < 4; ++i) {
    uint16x4_t part = vld1_u16(reinterpret_cast<const uint16_t*>(p) + 4 * i);
    r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(part));
  }
  return r;
}
inline f64x16 load(const double* p) {
  f64x16 r;
  for (int i = 0; i < 8; ++i) r.v[i] = vld1q_f64(p + 2 * i);
  return r;
}
inline void store(float* p, f32x16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
inline void store(double* p, f64x16 a) {
  for (int i = 0; i < 8; ++i) vst1q_f64(p + 2 * i, a.v[i]);
}
inline f32x16 splat(float v) {
  float32x4_t s = vdupq_n_f32(v);
  return {{s, s, s, s}};
}
inline f64x16 splat(double v) {
  float64x2_t s = vdupq_n_f64(v);
  return {{s, s, s, s, s, s, s, s}};
}
inline f64x16 widen(f32x16 a) {
  f64x16 r;
  for (int i = 0; i < 4; ++i) {
    r.v[2 * i] = vcvt_f64_f32(vget_low_f32(a.v[i]));
    r.v[2 * i + 1] = vcvt_high_f64_f32(a.v[i]);
  }
  return r;
}
inline f64x16 widen(f64x16 a) { return a; }

inline f32x16 add(f32x16 a, f32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vaddq_f32(a.v[i], b.v[i]);
  return a;
}
inline f32x16 sub(f32x16 a, f32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vsubq_f32(a.v[i], b.v[i]);
  return a;
}
inline f32x16 mul(f32x16 a, f32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vmulq_f32(a.v[i], b.v[i]);
  return a;
}
inline f32x16 abs_of(f32x16 a) {
  for (int i = 0; i < 4; ++i) a.v[i] = vabsq_f32(a.v[i]);
  return a;
}
inline f64x16 add(f64x16 a, f64x16 b) {
  for (int i = 0; i < 8; ++i) a.v[i] = vaddq_f64(a.v[i], b.v[i]);
  return a;
}
inline f64x16 sub(f64x16 a, f64x16 b) {
  for (int i = 0; i < 8; ++i) a.v[i] = vsubq_f64(a.v[i], b.v[i]);
  return a;
}
inline f64x16 mul(f64x16 a, f64x16 b) {
  for (int i = 0; i < 8; ++i) a.v[i] = vmulq_f64(a.v[i], b.v[i]);
  return a;
}
inline f64x16 abs_of(f64x16 a) {
  for (int i = 0; i < 8; ++i) a.v[i] = vabsq_f64(a.v[i]);
  return a;
}

// NEON has no movemask: keep one bit per lane and add the lanes up.
inline uint32_t bits_of(uint32x4_t on) {
  const uint32x4_t own = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(on, own));
}
inline uint32_t bits_of(uint64x2_t on) {
  return uint32_t(vgetq_lane_u64(on, 0) & 1) | uint32_t(vgetq_lane_u64(on, 1) & 2);
}
inline uint32_t less(f32x16 a, f32x16 b) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) bits |= bits_of(vcltq_f32(a.v[i], b.v[i])) << (4 * i);
  return bits;
}
inline uint32_t less_equal(f32x16 a, f32x16 b) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) bits |= bits_of(vcleq_f32(a.v[i], b.v[i])) << (4 * i);
  return bits;
}
inline uint32_t less(f64x16 a, f64x16 b) {
  uint32_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= bits_of(vcltq_f64(a.v[i], b.v[i])) << (2 * i);
  return bits;
}
inline uint32_t less_equal(f64x16 a, f64x16 b) {
  uint32_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= bits_of(vcleq_f64(a.v[i], b.v[i])) << (2 * i);
  return bits;
}

inline f32x16 multiply_add(f32x16 a, f32x16 b, f32x16 c) {
  for (int i = 0; i < 4; ++i) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}
inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// Arithmetic of the engine's kernels; vec_scalar.h defines each word.
inline f32x16 div(f32x16 a, f32x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vdivq_f32(a.v[i], b.v[i]);
  return a;
}
// NEON's maximum and minimum are NaN if either side is.
inline f32x16 at_least(f32x16 v, f32x16 lo) {
  for (int i = 0; i < 4; ++i) v.v[i] = vmaxq_f32(v.v[i], lo.v[i]);
  return v;
}
inline f32x16 at_most(f32x16 v, f32x16 hi) {
  for (int i = 0; i < 4; ++i) v.v[i] = vminq_f32(v.v[i], hi.v[i]);
  return v;
}
inline f32x16 max_of(f32x16 a, f32x16 b) { return at_least(a, b); }
inline f32x16 keep(f32x16 a, uint32_t bits) {
  const r32x16 on = lanes(r32x16{}, bits);
  for (int i = 0; i < 4; ++i) a.v[i] = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.v[i]), on.v[i]));
  return a;
}
inline f32x16 blend(f32x16 off, f32x16 on, uint32_t bits) {
  const r32x16 chosen = lanes(r32x16{}, bits);
  for (int i = 0; i < 4; ++i) off.v[i] = vbslq_f32(chosen.v[i], on.v[i], off.v[i]);
  return off;
}
inline f32x16 power_of_two(f32x16 shifted) {
  for (float32x4_t& part : shifted.v) part = vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(part), 23));
  return shifted;
}
inline f32x16 permute(const float* from, const int32_t* lane, f32x16 fill) {
  float out[16];
  store(out, fill);
  for (int i = 0; i < 16; ++i)
    if (lane[i] >= 0) out[i] = from[lane[i]];
  return load(out);
}
inline float sum_of(f32x16 a) {
  const float32x4_t quarter = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t pair = vadd_f32(vget_low_f32(quarter), vget_high_f32(quarter));
  return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}

// Four weights, splatted one by one (part of the multiply-add).
struct f32x4s {
  float32x4_t v;
};
inline f32x4s load_four(const float* p) { return {vld1q_f32(p)}; }
template <int I>
inline f32x16 splat_one(f32x4s four) {
  const float32x4_t s = vdupq_laneq_f32(four.v, I);
  return {{s, s, s, s}};
}

// Sums of a sparse tile and of a dense tile (for each of its four output channels) that 32 registers hold.
inline constexpr int max_sums = 6, max_dense_sums = 1;

// Stores the first `count` (1..15) of 16 floats; neither side is touched beyond them.
inline void store_first(float* p, const float* from, int count) {
  int i = 0;
  for (; i + 4 <= count; i += 4) vst1q_f32(p + i, vld1q_f32(from + i));
  for (; i < count; ++i) p[i] = from[i];
}

// How many 16-lane sums the registers hold beside the operands of a multiply-add.
inline constexpr int max_tile = 6;

inline uint32_t bits_of_bytes(const uint8_t* p) {
  const uint8x16_t own = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  uint8x16_t v = vld1q_u8(p);
  uint8x16_t on = vandq_u8(vtstq_u8(v, v), own);
  return uint32_t{vaddv_u8(vget_low_u8(on))} | uint32_t{vaddv_u8(vget_high_u8(on))} << 8;
}
inline void bytes_of_bits(uint8_t* p, uint32_t bits) {
  const uint8x8_t own = {1, 2, 4, 8, 16, 32, 64, 128};
  uint8x8_t low = vtst_u8(vdup_n_u8(static_cast<uint8_t>(bits)), own);
  uint8x8_t high = vtst_u8(vdup_n_u8(static_cast<uint8_t>(bits >> 8)), own);
  vst1q_u8(p, vandq_u8(vcombine_u8(low, high), vdupq_n_u8(1)));
}

}  // namespace
}  // namespace secateur::cpu

// load_first, store_first of a vector, transpose.
#include "lane_moves.h"
