// The 16-lane vocabulary for AVX2 + FMA + F16C: two registers of floats, four of doubles. Words as in vec_scalar.h.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace secateur::cpu {
namespace {

struct f32x16 {
  __m256 v[2];
};
struct f64x16 {
  __m256d v[4];
};
struct r16x16 {
  __m256i v[1];
};
struct r32x16 {
  __m256i v[2];
};
struct r64x16 {
  __m256i v[4];
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
  for (unsigned i = 0; i < sizeof r.v / 32; ++i) r.v[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + i);
  return r;
}
template <class T, class R>
inline void store_raw(T* p, R r) {
  for (unsigned i = 0; i < sizeof r.v / 32; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + i, r.v[i]);
}
template <class T>
inline raw<T> splat_raw(T value) {
  raw<T> r;
  for (auto& part : r.v) {
    if constexpr (sizeof(T) == 2) part = _mm256_set1_epi16(__builtin_bit_cast(int16_t, value));
    if constexpr (sizeof(T) == 4) part = _mm256_set1_epi32(__builtin_bit_cast(int32_t, value));
    if constexpr (sizeof(T) == 8) part = _mm256_set1_epi64x(__builtin_bit_cast(int64_t, value));
  }
  return r;
}
// All ones in lane i where bit i is set: AVX2 has no mask registers, so each lane tests its own bit.
inline __m256i lanes_16(uint32_t bits) {
  const __m256i own = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
                                        static_cast<int16_t>(0x8000));
  return _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(bits)), own), own);
}
inline __m256i lanes_32(uint32_t bits) {
  const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), own), own);
}
inline __m256i lanes_64(uint32_t bits) {
  const __m256i own = _mm256_setr_epi64x(1, 2, 4, 8);
  return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits), own), own);
}
inline r16x16 lanes(r16x16, uint32_t bits) { return {{lanes_16(bits)}}; }
inline r32x16 lanes(r32x16, uint32_t bits) { return {{lanes_32(bits), lanes_32(bits >> 8)}}; }
inline r64x16 lanes(r64x16, uint32_t bits) {
  return {{lanes_64(bits), lanes_64(bits >> 4), lanes_64(bits >> 8), lanes_64(bits >> 12)}};
}
template <class R>
inline R keep(R r, uint32_t bits) {
  R on = lanes(r, bits);
  for (unsigned i = 0; i < sizeof r.v / 32; ++i) r.v[i] = _mm256_and_si256(r.v[i], on.v[i]);
  return r;
}
template <class R>
inline R blend(R off, R on, uint32_t bits) {
  R choose = lanes(off, bits);
  for (unsigned i = 0; i < sizeof off.v / 32; ++i) off.v[i] = _mm256_blendv_epi8(off.v[i], on.v[i], choose.v[i]);
  return off;
}

inline f32x16 load(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
inline f32x16 load(const bf16* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  __m256i a = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16);
  __m256i b = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16);
  return {{_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)}};
}
inline f32x16 load(const f16* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {{_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))}};
}
inline f64x16 load(const double* p) {
  return {{_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4), _mm256_loadu_pd(p + 8), _mm256_loadu_pd(p + 12)}};
}
inline void store(float* p, f32x16 a) {
  for (int i = 0; i < 2; ++i) _mm256_storeu_ps(p + 8 * i, a.v[i]);
}
inline void store(double* p, f64x16 a) {
  for (int i = 0; i < 4; ++i) _mm256_storeu_pd(p + 4 * i, a.v[i]);
}
inline f32x16 splat(float v) { return {{_mm256_set1_ps(v), _mm256_set1_ps(v)}}; }
inline f64x16 splat(double v) {
  __m256d s = _mm256_set1_pd(v);
  return {{s, s, s, s}};
}
inline f64x16 widen(f32x16 a) {
  return {{_mm256_cvtps_pd(_mm256_castps256_ps128(a.v[0])), _mm256_cvtps_pd(_mm256_extractf128_ps(a.v[0], 1)),
           _mm256_cvtps_pd(_mm256_castps256_ps128(a.v[1])), _mm256_cvtps_pd(_mm256_extractf128_ps(a.v[1], 1))}};
}
inline f64x16 widen(f64x16 a) { return a; }

inline f32x16 add(f32x16 a, f32x16 b) { return {{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}}; }
inline f32x16 sub(f32x16 a, f32x16 b) { return {{_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}}; }
inline f32x16 mul(f32x16 a, f32x16 b) { return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}}; }
inline f32x16 abs_of(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {{_mm256_andnot_ps(sign, a.v[0]), _mm256_andnot_ps(sign, a.v[1])}};
}
inline f64x16 add(f64x16 a, f64x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = _mm256_add_pd(a.v[i], b.v[i]);
  return a;
}
inline f64x16 sub(f64x16 a, f64x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = _mm256_sub_pd(a.v[i], b.v[i]);
  return a;
}
inline f64x16 mul(f64x16 a, f64x16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = _mm256_mul_pd(a.v[i], b.v[i]);
  return a;
}
inline f64x16 abs_of(f64x16 a) {
  for (int i = 0; i < 4; ++i) a.v[i] = _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v[i]);
  return a;
}

inline uint32_t less(f32x16 a, f32x16 b) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v[0], b.v[0], _CMP_LT_OQ))) |
         uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v[1], b.v[1], _CMP_LT_OQ))) << 8;
}
inline uint32_t less_equal(f32x16 a, f32x16 b) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v[0], b.v[0], _CMP_LE_OQ))) |
         uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v[1], b.v[1], _CMP_LE_OQ))) << 8;
}
inline uint32_t less(f64x16 a, f64x16 b) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i)
    bits |= uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(a.v[i], b.v[i], _CMP_LT_OQ))) << (4 * i);
  return bits;
}
inline uint32_t less_equal(f64x16 a, f64x16 b) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i)
    bits |= uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(a.v[i], b.v[i], _CMP_LE_OQ))) << (4 * i);
  return bits;
}

inline f32x16 multiply_add(f32x16 a, f32x16 b, f32x16 c) {
  return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// Arithmetic of the engine's kernels; vec_scalar.h defines each word.
inline f32x16 div(f32x16 a, f32x16 b) { return {{_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])}}; }
// The second operand if unordered.
inline f32x16 at_least(f32x16 v, f32x16 lo) {
  return {{_mm256_max_ps(lo.v[0], v.v[0]), _mm256_max_ps(lo.v[1], v.v[1])}};
}
inline f32x16 at_most(f32x16 v, f32x16 hi) {
  return {{_mm256_min_ps(hi.v[0], v.v[0]), _mm256_min_ps(hi.v[1], v.v[1])}};
}
inline f32x16 max_of(f32x16 a, f32x16 b) {
  f32x16 r;
  for (int i = 0; i < 2; ++i)
    r.v[i] = _mm256_blendv_ps(_mm256_max_ps(a.v[i], b.v[i]), a.v[i], _mm256_cmp_ps(a.v[i], a.v[i], _CMP_UNORD_Q));
  return r;
}
inline f32x16 keep(f32x16 a, uint32_t bits) {
  return {{_mm256_and_ps(a.v[0], _mm256_castsi256_ps(lanes_32(bits))),
           _mm256_and_ps(a.v[1], _mm256_castsi256_ps(lanes_32(bits >> 8)))}};
}
inline f32x16 blend(f32x16 off, f32x16 on, uint32_t bits) {
  return {{_mm256_blendv_ps(off.v[0], on.v[0], _mm256_castsi256_ps(lanes_32(bits))),
           _mm256_blendv_ps(off.v[1], on.v[1], _mm256_castsi256_ps(lanes_32(bits >> 8)))}};
}
inline f32x16 power_of_two(f32x16 shifted) {
  for (__m256& part : shifted.v) part = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(part), 23));
  return shifted;
}
inline f32x16 permute(const float* from, const int32_t* lane, f32x16 fill) {
  const __m256 low = _mm256_loadu_ps(from), high = _mm256_loadu_ps(from + 8);
  f32x16 r;
  for (int i = 0; i < 2; ++i) {
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane) + i);
    const __m256 of_high = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // bit 3 to the sign
    const __m256 moved =
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), of_high);
    r.v[i] = _mm256_blendv_ps(moved, fill.v[i], _mm256_castsi256_ps(index));
  }
  return r;
}
inline float sum_of(f32x16 a) {
  const __m256 half = _mm256_add_ps(a.v[0], a.v[1]);
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}

// Four weights, splatted one by one.
struct f32x4s {
  const float* p;
};
inline f32x4s load_four(const float* p) { return {p}; }
template <int I>
inline f32x16 splat_one(f32x4s four) {
  return splat(four.p[I]);
}

// Sums of a sparse tile and of a dense tile (for each of its four output channels) that 16 registers hold.
inline constexpr int max_sums = 6, max_dense_sums = 1;

// Stores the first `count` (1..15) of 16 floats; neither side is touched beyond them.
inline void store_first(float* p, const float* from, int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i low = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
  _mm256_maskstore_ps(p, low, _mm256_maskload_ps(from, low));
  if (count <= 8) return;
  const __m256i high = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), lane);
  _mm256_maskstore_ps(p + 8, high, _mm256_maskload_ps(from + 8, high));
}

// How many 16-lane sums the registers hold beside the operands of a multiply-add.
inline constexpr int max_tile = 6;

inline uint32_t bits_of_bytes(const uint8_t* p) {
  __m128i zero = _mm_cmpeq_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
  return uint32_t(~_mm_movemask_epi8(zero)) & 0xffff;
}
inline void bytes_of_bits(uint8_t* p, uint32_t bits) {
  const __m128i own =
      _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, static_cast<char>(0x80), 1, 2, 4, 8, 16, 32, 64, static_cast<char>(0x80));
  __m128i both = _mm_set1_epi16(static_cast<int16_t>(bits));
  __m128i half = _mm_shuffle_epi8(both, _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
  __m128i on = _mm_cmpeq_epi8(_mm_and_si128(half, own), own);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_and_si128(on, _mm_set1_epi8(1)));
}

}  // namespace
}  // namespace secateur::cpu

// load_first, store_first of a vector, transpose.
#include "lane_moves.h"
