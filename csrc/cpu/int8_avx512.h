// int8 words of the vocabulary for AVX-512, with VNNI if the file is compiled for it. Included after vec_avx512.h;
// words as in int8_scalar.h.
#pragma once

#include "int8.h"

namespace secateur::cpu {
namespace {

struct i32x16 {
  __m512i v;
};
struct quads {
  __m512i v;
};

inline i32x16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_i32(int32_t* p, i32x16 a) { _mm512_storeu_si512(p, a.v); }
inline i32x16 splat_i32(int32_t v) { return {_mm512_set1_epi32(v)}; }
inline i32x16 add(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline i32x16 sub(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline f32x16 float_of(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline i32x16 round_of(f32x16 a) {
  return {_mm512_cvt_roundps_epi32(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

inline uint32_t quad_at(const uint8_t* p) {
  uint32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline quads load_quads(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_quads(uint8_t* p, quads a) { _mm512_storeu_si512(p, a.v); }
inline quads splat_quad(uint32_t four) { return {_mm512_set1_epi32(static_cast<int>(four))}; }
inline void split_quads(quads a, i32x16 (&channel)[4]) {
  const __m512i low = _mm512_set1_epi32(0xff);
  channel[0] = {_mm512_and_si512(a.v, low)};
  channel[1] = {_mm512_and_si512(_mm512_srli_epi32(a.v, 8), low)};
  channel[2] = {_mm512_and_si512(_mm512_srli_epi32(a.v, 16), low)};
  channel[3] = {_mm512_srli_epi32(a.v, 24)};
}
// Packing works within quarters of a register; so does the shuffle that gathers the bytes of a lane.
inline quads join_quads(const i32x16 (&channel)[4], int32_t zero_point) {
  const __m512i zero = _mm512_set1_epi16(static_cast<short>(zero_point));
  const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(channel[0].v, channel[1].v), zero);
  const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(channel[2].v, channel[3].v), zero);
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return {_mm512_shuffle_epi8(_mm512_packus_epi16(low, high), order)};
}
inline quads at_least_bytes(quads a, quads b) { return {_mm512_max_epu8(a.v, b.v)}; }
inline quads at_most_bytes(quads a, quads b) { return {_mm512_min_epu8(a.v, b.v)}; }
inline quads zero_below(quads a, quads least, quads zero) {
  return {_mm512_mask_mov_epi8(a.v, _mm512_cmplt_epu8_mask(a.v, least.v), zero.v)};
}
inline quads blend_quads(quads off, quads on, uint32_t bits) {
  return {_mm512_mask_mov_epi32(off.v, static_cast<__mmask16>(bits), on.v)};
}

// One load for four blocks. The splats are shuffles, which do not compete with a dot product's memory operand.
struct blocks4 {
  __m512i v;
};
inline blocks4 load_four_blocks(const uint32_t* p) {
  blocks4 four{_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  asm("" : "+v"(four.v));  // otherwise the compiler turns each splat back into a load
  return four;
}

// The product of four bytes, or vpmaddubsw, which adds two products in 16 bits: int16-safe blocks prevent saturation
// (int16_safe.h).
#ifdef __AVX512VNNI__
constexpr bool needs_int16_safe_blocks = false;
inline __m512i dot_512(__m512i sum, __m512i x, __m512i w) { return _mm512_dpbusd_epi32(sum, x, w); }
constexpr int max_block_sums = 28, max_4x4_sums = 6;
#else
constexpr bool needs_int16_safe_blocks = true;
inline __m512i dot_512(__m512i sum, __m512i x, __m512i w) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(x, w), _mm512_set1_epi16(1)));
}
constexpr int max_block_sums = 24, max_4x4_sums = 5;
#endif

struct block {
  __m512i v;
};
inline block block_of(uint32_t four) { return {_mm512_set1_epi32(static_cast<int>(four))}; }
template <int I>
inline block one_block(blocks4 four) {
  return {_mm512_shuffle_epi32(four.v, static_cast<_MM_PERM_ENUM>(I * 0x55))};
}
struct inputs {
  __m512i v;
};
inline inputs load_inputs(const uint8_t* x) { return {_mm512_loadu_si512(x)}; }
inline i32x16 dot(i32x16 sum, block w, inputs x) { return {dot_512(sum.v, x.v, w.v)}; }
#ifndef __AVX512VNNI__
inline i32x16 dot_pair(i32x16 sum, block w0, inputs x0, block w1, inputs x1) {
  const __m512i both = _mm512_add_epi16(_mm512_maddubs_epi16(x0.v, w0.v), _mm512_maddubs_epi16(x1.v, w1.v));
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(both, _mm512_set1_epi16(1)))};
}
#endif

constexpr bool shifts = false;
inline int32_t shift_of(int32_t) { return 0; }

// Gathers the quads of x at the offsets, 16 at a time.
inline int32_t dot_blocks(const uint16_t* offset, const uint32_t* weight, int64_t count, const uint8_t* x) {
  __m512i sum = _mm512_setzero_si512();
  for (int64_t n = 0; n < count; n += 16) {
    const __mmask16 here = static_cast<__mmask16>(count - n >= 16 ? 0xffffu : (1u << (count - n)) - 1);
    const __m512i at = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, offset + n));
    const __m512i quad = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), here, at, x, 4);
    const __m512i w = _mm512_maskz_loadu_epi32(here, weight + n);
    sum = dot_512(sum, quad, w);
  }
  return _mm512_reduce_add_epi32(sum);
}

// [pixel p of 0 to 3, and p + 4, p + 8, p + 12][channel]: the byte order of unpacking and packing.
struct pixel_sums {
  __m512i v[4];
};
inline pixel_sums splat_pixels(const int32_t* four) {
  const __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(four)));
  return {{v, v, v, v}};
}
inline void add_two_taps(pixel_sums& s, const uint8_t* a, const uint8_t* b, const int16_t* weights) {
  const __m512i w = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
  const __m512i zero = _mm512_setzero_si512(), x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);
  const __m512i low = _mm512_unpacklo_epi8(x, y), high = _mm512_unpackhi_epi8(x, y);
  s.v[0] = _mm512_add_epi32(s.v[0], _mm512_madd_epi16(_mm512_unpacklo_epi8(low, zero), w));
  s.v[1] = _mm512_add_epi32(s.v[1], _mm512_madd_epi16(_mm512_unpackhi_epi8(low, zero), w));
  s.v[2] = _mm512_add_epi32(s.v[2], _mm512_madd_epi16(_mm512_unpacklo_epi8(high, zero), w));
  s.v[3] = _mm512_add_epi32(s.v[3], _mm512_madd_epi16(_mm512_unpackhi_epi8(high, zero), w));
}
inline quads join_pixels(const pixel_sums& s, const float* multiplier, int32_t zero_point) {
  const __m512 m = _mm512_broadcast_f32x4(_mm_loadu_ps(multiplier));
  const __m512i zero = _mm512_set1_epi16(static_cast<short>(zero_point));
  i32x16 q[4];
  for (int i = 0; i < 4; ++i) q[i] = round_of({_mm512_mul_ps(_mm512_cvtepi32_ps(s.v[i]), m)});
  return {_mm512_packus_epi16(_mm512_adds_epi16(_mm512_packs_epi32(q[0].v, q[1].v), zero),
                              _mm512_adds_epi16(_mm512_packs_epi32(q[2].v, q[3].v), zero))};
}
constexpr bool depthwise_pays = needs_int16_safe_blocks;

}  // namespace
}  // namespace secateur::cpu
