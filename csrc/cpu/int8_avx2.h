// int8 words of the vocabulary for AVX2, with AVX-VNNI if the file is compiled for it. Included after vec_avx2.h; words
// as in int8_scalar.h.
#pragma once

#include "int8.h"

namespace secateur::cpu {
namespace {

struct i32x16 {
  __m256i v[2];
};
struct quads {
  __m256i v[2];
};

inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline i32x16 load_i32(const int32_t* p) { return {{load_256(p), load_256(p + 8)}}; }
inline void store_i32(int32_t* p, i32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, a.v[1]);
}
inline i32x16 splat_i32(int32_t v) { return {{_mm256_set1_epi32(v), _mm256_set1_epi32(v)}}; }
inline i32x16 add(i32x16 a, i32x16 b) { return {{_mm256_add_epi32(a.v[0], b.v[0]), _mm256_add_epi32(a.v[1], b.v[1])}}; }
inline i32x16 sub(i32x16 a, i32x16 b) { return {{_mm256_sub_epi32(a.v[0], b.v[0]), _mm256_sub_epi32(a.v[1], b.v[1])}}; }
inline f32x16 float_of(i32x16 a) { return {{_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])}}; }
inline i32x16 round_of(f32x16 a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;  // in any rounding mode of the thread
  return {{_mm256_cvtps_epi32(_mm256_round_ps(a.v[0], nearest)), _mm256_cvtps_epi32(_mm256_round_ps(a.v[1], nearest))}};
}

inline uint32_t quad_at(const uint8_t* p) {
  uint32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline quads load_quads(const uint8_t* p) { return {{load_256(p), load_256(p + 32)}}; }
inline void store_quads(uint8_t* p, quads a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, a.v[1]);
}
inline quads splat_quad(uint32_t four) {
  const __m256i v = _mm256_set1_epi32(static_cast<int>(four));
  return {{v, v}};
}
inline void split_quads(quads a, i32x16 (&channel)[4]) {
  const __m256i low = _mm256_set1_epi32(0xff);
  for (int h = 0; h < 2; ++h) {
    channel[0].v[h] = _mm256_and_si256(a.v[h], low);
    channel[1].v[h] = _mm256_and_si256(_mm256_srli_epi32(a.v[h], 8), low);
    channel[2].v[h] = _mm256_and_si256(_mm256_srli_epi32(a.v[h], 16), low);
    channel[3].v[h] = _mm256_srli_epi32(a.v[h], 24);
  }
}
// Packing works within halves of a register; so does the shuffle that gathers the bytes of a lane.
inline quads join_quads(const i32x16 (&channel)[4], int32_t zero_point) {
  const __m256i zero = _mm256_set1_epi16(static_cast<short>(zero_point));
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  quads q;
  for (int h = 0; h < 2; ++h) {
    const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(channel[0].v[h], channel[1].v[h]), zero);
    const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(channel[2].v[h], channel[3].v[h]), zero);
    q.v[h] = _mm256_shuffle_epi8(_mm256_packus_epi16(low, high), order);
  }
  return q;
}
inline quads at_least_bytes(quads a, quads b) {
  return {{_mm256_max_epu8(a.v[0], b.v[0]), _mm256_max_epu8(a.v[1], b.v[1])}};
}
inline quads at_most_bytes(quads a, quads b) {
  return {{_mm256_min_epu8(a.v[0], b.v[0]), _mm256_min_epu8(a.v[1], b.v[1])}};
}
inline quads zero_below(quads a, quads least, quads zero) {
  quads q;
  for (int h = 0; h < 2; ++h) {
    const __m256i stays = _mm256_cmpeq_epi8(_mm256_max_epu8(a.v[h], least.v[h]), a.v[h]);
    q.v[h] = _mm256_blendv_epi8(zero.v[h], a.v[h], stays);
  }
  return q;
}
inline quads blend_quads(quads off, quads on, uint32_t bits) {
  return {{_mm256_blendv_epi8(off.v[0], on.v[0], lanes_32(bits)),
           _mm256_blendv_epi8(off.v[1], on.v[1], lanes_32(bits >> 8))}};
}

struct blocks4 {
  __m256i v;
};
inline blocks4 load_four_blocks(const uint32_t* p) {
  blocks4 four{_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  asm("" : "+x"(four.v));  // otherwise the compiler turns each splat back into a load
  return four;
}

// The product of four bytes, or vpmaddubsw, which adds two products in 16 bits: int16-safe blocks prevent saturation
// (int16_safe.h).
#ifdef __AVXVNNI__
constexpr bool needs_int16_safe_blocks = false;
inline __m256i dot_256(__m256i sum, __m256i x, __m256i w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
#else
constexpr bool needs_int16_safe_blocks = true;
inline __m256i dot_256(__m256i sum, __m256i x, __m256i w) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
}
#endif
constexpr int max_block_sums = 6, max_4x4_sums = 1;

struct block {
  __m256i v;
};
inline block block_of(uint32_t four) { return {_mm256_set1_epi32(static_cast<int>(four))}; }
template <int I>
inline block one_block(blocks4 four) {
  return {_mm256_shuffle_epi32(four.v, I * 0x55)};
}
struct inputs {
  __m256i v[2];
};
inline inputs load_inputs(const uint8_t* x) { return {{load_256(x), load_256(x + 32)}}; }
inline i32x16 dot(i32x16 sum, block w, inputs x) {
  return {{dot_256(sum.v[0], x.v[0], w.v), dot_256(sum.v[1], x.v[1], w.v)}};
}
#ifndef __AVXVNNI__
inline i32x16 dot_pair(i32x16 sum, block w0, inputs x0, block w1, inputs x1) {
  for (int h = 0; h < 2; ++h) {
    const __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(x0.v[h], w0.v), _mm256_maddubs_epi16(x1.v[h], w1.v));
    sum.v[h] = _mm256_add_epi32(sum.v[h], _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
  }
  return sum;
}
#endif

constexpr bool shifts = false;
inline int32_t shift_of(int32_t) { return 0; }

inline int32_t dot_blocks(const uint16_t* offset, const uint32_t* weight, int64_t count, const uint8_t* x) {
  __m256i sum = _mm256_setzero_si256();
  int64_t n = 0;
  for (; n + 8 <= count; n += 8) {
    const __m256i at = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offset + n)));
    const __m256i quad = _mm256_i32gather_epi32(reinterpret_cast<const int*>(x), at, 4);
    sum = dot_256(sum, quad, load_256(weight + n));
  }
  alignas(32) int32_t parts[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sum);
  int32_t total = 0;
  for (int32_t part : parts) total += part;
  for (; n < count; ++n)
    for (int i = 0; i < 4; ++i) total += static_cast<int8_t>(weight[n] >> (8 * i)) * x[int64_t{offset[n]} * 4 + i];
  return total;
}

// [half of the vector][pixel p of 0 to 3, and p + 4][channel]: the byte order of unpacking and packing.
struct pixel_sums {
  __m256i v[2][4];
};
inline pixel_sums splat_pixels(const int32_t* four) {
  const __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(four)));
  return {{{v, v, v, v}, {v, v, v, v}}};
}
inline void add_two_taps(pixel_sums& s, const uint8_t* a, const uint8_t* b, const int16_t* weights) {
  const __m256i w = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
  const __m256i zero = _mm256_setzero_si256();
  for (int h = 0; h < 2; ++h) {
    const __m256i x = load_256(a + 32 * h), y = load_256(b + 32 * h);
    const __m256i low = _mm256_unpacklo_epi8(x, y), high = _mm256_unpackhi_epi8(x, y);
    s.v[h][0] = _mm256_add_epi32(s.v[h][0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), w));
    s.v[h][1] = _mm256_add_epi32(s.v[h][1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), w));
    s.v[h][2] = _mm256_add_epi32(s.v[h][2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), w));
    s.v[h][3] = _mm256_add_epi32(s.v[h][3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), w));
  }
}
inline quads join_pixels(const pixel_sums& s, const float* multiplier, int32_t zero_point) {
  const __m128 four = _mm_loadu_ps(multiplier);
  const __m256 m = _mm256_insertf128_ps(_mm256_castps128_ps256(four), four, 1);
  const __m256i zero = _mm256_set1_epi16(static_cast<short>(zero_point));
  quads y;
  for (int h = 0; h < 2; ++h) {
    i32x16 q[2];
    for (int i = 0; i < 2; ++i)
      q[i] = round_of({{_mm256_mul_ps(_mm256_cvtepi32_ps(s.v[h][2 * i]), m),
                        _mm256_mul_ps(_mm256_cvtepi32_ps(s.v[h][2 * i + 1]), m)}});
    y.v[h] = _mm256_packus_epi16(_mm256_adds_epi16(_mm256_packs_epi32(q[0].v[0], q[0].v[1]), zero),
                                 _mm256_adds_epi16(_mm256_packs_epi32(q[1].v[0], q[1].v[1]), zero));
  }
  return y;
}
constexpr bool depthwise_pays = needs_int16_safe_blocks;

}  // namespace
}  // namespace secateur::cpu
