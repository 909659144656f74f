// int8 words of the vocabulary in plain C++: they define each word. Included after vec_scalar.h.
#pragma once

#include "int8.h"

namespace secateur::cpu {
namespace {

using i32x16 = x16<int32_t>;
struct quads {
  uint8_t byte[64];  // [lane][channel]
};

inline i32x16 load_i32(const int32_t* p) { return load_raw(p); }
inline void store_i32(int32_t* p, const i32x16& v) { store_raw(p, v); }
inline i32x16 splat_i32(int32_t v) { return splat_raw(v); }
inline i32x16 add(const i32x16& a, const i32x16& b) {
  i32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] + b.lane[i];
  return r;
}
inline i32x16 sub(const i32x16& a, const i32x16& b) {
  i32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] - b.lane[i];
  return r;
}
inline f32x16 float_of(const i32x16& a) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<float>(a.lane[i]);
  return r;
}
// Rounds to the nearest integer, halves to even, in any rounding mode of the thread. |v| < 2^31.
inline int32_t nearest(float v) {
  const auto whole = static_cast<int32_t>(v);  // towards 0
  const float rest = v - static_cast<float>(whole);
  const bool odd = whole & 1;
  return whole + (rest > 0.5f || (rest == 0.5f && odd)) - (rest < -0.5f || (rest == -0.5f && odd));
}
inline i32x16 round_of(const f32x16& v) {
  i32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = nearest(v.lane[i]);
  return r;
}

inline uint32_t quad_at(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline quads load_quads(const uint8_t* p) {
  quads q;
  std::memcpy(q.byte, p, 64);
  return q;
}
inline void store_quads(uint8_t* p, const quads& q) { std::memcpy(p, q.byte, 64); }
inline quads splat_quad(uint32_t four) {
  quads q;
  for (int i = 0; i < 64; i += 4) std::memcpy(q.byte + i, &four, 4);
  return q;
}
inline void split_quads(const quads& q, i32x16 (&channel)[4]) {
  for (int i = 0; i < 64; ++i) channel[i % 4].lane[i / 4] = q.byte[i];
}
// clamp(channel + zero_point, 0, 255)
inline quads join_quads(const i32x16 (&channel)[4], int32_t zero_point) {
  quads q;
  for (int i = 0; i < 64; ++i) {
    const int64_t v = int64_t{channel[i % 4].lane[i / 4]} + zero_point;
    q.byte[i] = static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
  }
  return q;
}
inline quads at_least_bytes(const quads& a, const quads& b) {
  quads q;
  for (int i = 0; i < 64; ++i) q.byte[i] = a.byte[i] > b.byte[i] ? a.byte[i] : b.byte[i];
  return q;
}
inline quads at_most_bytes(const quads& a, const quads& b) {
  quads q;
  for (int i = 0; i < 64; ++i) q.byte[i] = a.byte[i] < b.byte[i] ? a.byte[i] : b.byte[i];
  return q;
}
inline quads zero_below(const quads& a, const quads& least, const quads& zero) {
  quads q;
  for (int i = 0; i < 64; ++i) q.byte[i] = a.byte[i] < least.byte[i] ? zero.byte[i] : a.byte[i];
  return q;
}
inline quads blend_quads(const quads& off, const quads& on, uint32_t bits) {
  quads q;
  for (int i = 0; i < 64; ++i) q.byte[i] = (bits >> (i / 4) & 1) ? on.byte[i] : off.byte[i];
  return q;
}

// Four signed weights, ready to be multiplied.
struct block {
  int32_t w[4];
};
inline block block_of(uint32_t four) {
  return {{static_cast<int8_t>(four), static_cast<int8_t>(four >> 8), static_cast<int8_t>(four >> 16),
           static_cast<int8_t>(four >> 24)}};
}
struct blocks4 {
  const uint32_t* p;
};
inline blocks4 load_four_blocks(const uint32_t* p) { return {p}; }
template <int I>
inline block one_block(blocks4 four) {
  return block_of(four.p[I]);
}
// Four bytes in each lane, ready to be multiplied.
struct inputs {
  const uint8_t* x;
};
inline inputs load_inputs(const uint8_t* x) { return {x}; }
inline i32x16 dot(const i32x16& sum, block w, inputs in) {
  const uint8_t* x = in.x;
  i32x16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = sum.lane[i] + w.w[0] * x[4 * i] + w.w[1] * x[4 * i + 1] + w.w[2] * x[4 * i + 2] + w.w[3] * x[4 * i + 3];
  return r;
}
// Correction for kernels that take inputs as signed bytes, 128 lower: 128 times the weights.
constexpr bool shifts = false;
inline int32_t shift_of(int32_t) { return 0; }
// Whether dot adds two products in 16 bits, so that blocks must be int16-safe (int16_safe.h). Then dot_pair(sum, w0,
// x0, w1, x1) also exists: dot(dot(sum, w0, x0), w1, x1) of paired blocks.
constexpr bool needs_int16_safe_blocks = false;

inline int32_t dot_blocks(const uint16_t* offset, const uint32_t* weight, int64_t count, const uint8_t* x) {
  int32_t sum = 0;
  for (int64_t n = 0; n < count; ++n) {
    const block w = block_of(weight[n]);
    const uint8_t* at = x + int64_t{offset[n]} * 4;
    for (int i = 0; i < 4; ++i) sum += w.w[i] * at[i];
  }
  return sum;
}

constexpr int max_block_sums = 4, max_4x4_sums = 1;

// Depthwise layers: one sum per channel of a quad and pixel, in any order that suits the instruction set. weights:
// [channel][tap].
struct pixel_sums {
  int32_t at[64];
};
inline pixel_sums splat_pixels(const int32_t* four) {
  pixel_sums s;
  for (int i = 0; i < 64; ++i) s.at[i] = four[i % 4];
  return s;
}
inline void add_two_taps(pixel_sums& s, const uint8_t* a, const uint8_t* b, const int16_t* weights) {
  for (int i = 0; i < 64; ++i) s.at[i] += weights[2 * (i % 4)] * a[i] + weights[2 * (i % 4) + 1] * b[i];
}
// clamp(round(sum * multiplier[channel]) + zero_point, 0, 255)
inline quads join_pixels(const pixel_sums& s, const float* multiplier, int32_t zero_point) {
  i32x16 q[4];
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 16; ++i) q[j].lane[i] = nearest(static_cast<float>(s.at[4 * i + j]) * multiplier[j]);
  return join_quads(q, zero_point);
}
// Whether this is faster than 4x4 blocks, where three products in four are with zero.
constexpr bool depthwise_pays = true;

}  // namespace
}  // namespace secateur::cpu
