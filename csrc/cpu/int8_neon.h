// int8 words of the vocabulary for NEON, with SDOT if the file is compiled for it. Included after vec_neon.h; words as
// in int8_scalar.h. vld4 and vst4 separate and join the four channels of a vector.
#pragma once

#include "int8.h"

namespace secateur::cpu {
namespace {

struct i32x16 {
  int32x4_t v[4];
};
struct quads {
  uint8x16x4_t channel;
};

inline i32x16 load_i32(const int32_t* p) {
  return {{vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}};
}
inline void store_i32(int32_t* p, const i32x16& a) {
  for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, a.v[i]);
}
inline i32x16 splat_i32(int32_t v) {
  const int32x4_t one = vdupq_n_s32(v);
  return {{one, one, one, one}};
}
inline i32x16 add(const i32x16& a, const i32x16& b) {
  i32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vaddq_s32(a.v[i], b.v[i]);
  return r;
}
inline i32x16 sub(const i32x16& a, const i32x16& b) {
  i32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vsubq_s32(a.v[i], b.v[i]);
  return r;
}
inline f32x16 float_of(const i32x16& a) {
  f32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vcvtq_f32_s32(a.v[i]);
  return r;
}
inline i32x16 round_of(const f32x16& a) {
  i32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vcvtnq_s32_f32(a.v[i]);
  return r;
}

inline uint32_t quad_at(const uint8_t* p) {
  uint32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline quads load_quads(const uint8_t* p) { return {vld4q_u8(p)}; }
inline void store_quads(uint8_t* p, const quads& q) { vst4q_u8(p, q.channel); }
inline quads splat_quad(uint32_t four) {
  quads q;
  for (int j = 0; j < 4; ++j) q.channel.val[j] = vdupq_n_u8(static_cast<uint8_t>(four >> (8 * j)));
  return q;
}
inline void split_quads(const quads& q, i32x16 (&channel)[4]) {
  for (int j = 0; j < 4; ++j) {
    const uint16x8_t low = vmovl_u8(vget_low_u8(q.channel.val[j])), high = vmovl_u8(vget_high_u8(q.channel.val[j]));
    channel[j] = {
        {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
         vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
  }
}
inline quads join_quads(const i32x16 (&channel)[4], int32_t zero_point) {
  const int16x8_t zero = vdupq_n_s16(static_cast<int16_t>(zero_point));
  quads q;
  for (int j = 0; j < 4; ++j) {
    const int32x4_t* v = channel[j].v;
    const int16x8_t low = vqaddq_s16(vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1])), zero);
    const int16x8_t high = vqaddq_s16(vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3])), zero);
    q.channel.val[j] = vcombine_u8(vqmovun_s16(low), vqmovun_s16(high));
  }
  return q;
}
inline quads at_least_bytes(const quads& a, const quads& b) {
  quads q;
  for (int j = 0; j < 4; ++j) q.channel.val[j] = vmaxq_u8(a.channel.val[j], b.channel.val[j]);
  return q;
}
inline quads at_most_bytes(const quads& a, const quads& b) {
  quads q;
  for (int j = 0; j < 4; ++j) q.channel.val[j] = vminq_u8(a.channel.val[j], b.channel.val[j]);
  return q;
}
inline quads zero_below(const quads& a, const quads& least, const quads& zero) {
  quads q;
  for (int j = 0; j < 4; ++j)
    q.channel.val[j] =
        vbslq_u8(vcltq_u8(a.channel.val[j], least.channel.val[j]), zero.channel.val[j], a.channel.val[j]);
  return q;
}
inline quads blend_quads(const quads& off, const quads& on, uint32_t bits) {
  const uint8x16_t own = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t both =
      vcombine_u8(vdup_n_u8(static_cast<uint8_t>(bits)), vdup_n_u8(static_cast<uint8_t>(bits >> 8)));
  const uint8x16_t is_on = vtstq_u8(both, own);
  quads q;
  for (int j = 0; j < 4; ++j) q.channel.val[j] = vbslq_u8(is_on, on.channel.val[j], off.channel.val[j]);
  return q;
}

struct blocks4 {
  uint32x4_t v;
};
inline blocks4 load_four_blocks(const uint32_t* p) { return {vld1q_u32(p)}; }

constexpr bool needs_int16_safe_blocks = false;
#ifdef __ARM_FEATURE_DOTPROD
// SDOT multiplies signed bytes: inputs are taken 128 lower, so a sum lacks 128 times the weights.
struct block {
  int8x16_t v;
};
inline block block_of(uint32_t four) { return {vreinterpretq_s8_u32(vdupq_n_u32(four))}; }
template <int I>
inline block one_block(blocks4 four) {
  return {vreinterpretq_s8_u32(vdupq_laneq_u32(four.v, I))};
}
struct inputs {
  int8x16_t v[4];
};
inline inputs load_inputs(const uint8_t* x) {
  inputs in;
  for (int i = 0; i < 4; ++i) in.v[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(x + 16 * i), vdupq_n_u8(0x80)));
  return in;
}
inline i32x16 dot(const i32x16& sum, block w, const inputs& x) {
  i32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vdotq_s32(sum.v[i], x.v[i], w.v);
  return r;
}
constexpr bool shifts = true;
inline int32_t shift_of(int32_t weight_sum) { return 128 * weight_sum; }
#else
struct block {
  int16x8_t v;  // the four weights twice
};
inline block block_of(uint32_t four) { return {vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)))}; }
template <int I>
inline block one_block(blocks4 four) {
  return block_of(vgetq_lane_u32(four.v, I));
}
struct inputs {
  int16x8_t low[4], high[4];
};
inline inputs load_inputs(const uint8_t* x) {
  inputs in;
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t bytes = vld1q_u8(x + 16 * i);
    in.low[i] = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
    in.high[i] = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes)));
  }
  return in;
}
// Products of a lane's four bytes, added in pairs in 32 bits.
inline int32x4_t four_lanes(int16x8_t low, int16x8_t high, int16x8_t w) {
  const int32x4_t a = vmull_s16(vget_low_s16(low), vget_low_s16(w)), b = vmull_high_s16(low, w);
  const int32x4_t c = vmull_s16(vget_low_s16(high), vget_low_s16(w)), d = vmull_high_s16(high, w);
  return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}
inline i32x16 dot(const i32x16& sum, block w, const inputs& x) {
  i32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vaddq_s32(sum.v[i], four_lanes(x.low[i], x.high[i], w.v));
  return r;
}
constexpr bool shifts = false;
inline int32_t shift_of(int32_t) { return 0; }
#endif

inline int32_t dot_blocks(const uint16_t* offset, const uint32_t* weight, int64_t count, const uint8_t* x) {
  int32_t sum = 0;
  for (int64_t n = 0; n < count; ++n)
    for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(weight[n] >> (8 * i)) * x[int64_t{offset[n]} * 4 + i];
  return sum;
}

constexpr int max_block_sums = 5, max_4x4_sums = 1;

struct pixel_sums {
  i32x16 channel[4];
};
inline pixel_sums splat_pixels(const int32_t* four) {
  return {{splat_i32(four[0]), splat_i32(four[1]), splat_i32(four[2]), splat_i32(four[3])}};
}
inline void add_tap(i32x16& s, uint8x16_t x, int16_t weight) {
  const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x))),
                  high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(x)));
  s.v[0] = vmlal_n_s16(s.v[0], vget_low_s16(low), weight);
  s.v[1] = vmlal_n_s16(s.v[1], vget_high_s16(low), weight);
  s.v[2] = vmlal_n_s16(s.v[2], vget_low_s16(high), weight);
  s.v[3] = vmlal_n_s16(s.v[3], vget_high_s16(high), weight);
}
inline void add_two_taps(pixel_sums& s, const uint8_t* a, const uint8_t* b, const int16_t* weights) {
  const quads x = load_quads(a), y = load_quads(b);
  for (int j = 0; j < 4; ++j) {
    add_tap(s.channel[j], x.channel.val[j], weights[2 * j]);
    add_tap(s.channel[j], y.channel.val[j], weights[2 * j + 1]);
  }
}
inline quads join_pixels(const pixel_sums& s, const float* multiplier, int32_t zero_point) {
  i32x16 q[4];
  for (int j = 0; j < 4; ++j) q[j] = round_of(mul(float_of(s.channel[j]), splat(multiplier[j])));
  return join_quads(q, zero_point);
}
#ifdef __ARM_FEATURE_DOTPROD
constexpr bool depthwise_pays = false;
#else
constexpr bool depthwise_pays = true;
#endif

}  // namespace
}  // namespace secateur::cpu
