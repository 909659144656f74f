// The 16-lane vocabulary for AVX-512 (F, BW, DQ, VL): one register of floats, two of doubles. Words as in vec_scalar.h.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace secateur::cpu {
namespace {

struct f32x16 {
  __m512 v;
};
struct f64x16 {
  __m512d lo, hi;
};
struct r16x16 {
  __m256i v;
};
struct r32x16 {
  __m512i v;
};
struct r64x16 {
  __m512i lo, hi;
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
  if constexpr (sizeof(T) == 2) return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  if constexpr (sizeof(T) == 4) return {_mm512_loadu_si512(p)};
  if constexpr (sizeof(T) == 8) return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 8)};
}
template <class T>
inline raw<T> splat_raw(T value) {
  if constexpr (sizeof(T) == 2) return {_mm256_set1_epi16(__builtin_bit_cast(int16_t, value))};
  if constexpr (sizeof(T) == 4) return {_mm512_set1_epi32(__builtin_bit_cast(int32_t, value))};
  if constexpr (sizeof(T) == 8) {
    __m512i v = _mm512_set1_epi64(__builtin_bit_cast(int64_t, value));
    return {v, v};
  }
}
template <class T>
inline void store_raw(T* p, r16x16 r) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), r.v);
}
template <class T>
inline void store_raw(T* p, r32x16 r) {
  _mm512_storeu_si512(p, r.v);
}
template <class T>
inline void store_raw(T* p, r64x16 r) {
  _mm512_storeu_si512(p, r.lo);
  _mm512_storeu_si512(p + 8, r.hi);
}
inline r16x16 keep(r16x16 r, uint32_t bits) { return {_mm256_maskz_mov_epi16(__mmask16(bits), r.v)}; }
inline r32x16 keep(r32x16 r, uint32_t bits) { return {_mm512_maskz_mov_epi32(__mmask16(bits), r.v)}; }
inline r64x16 keep(r64x16 r, uint32_t bits) {
  return {_mm512_maskz_mov_epi64(__mmask8(bits), r.lo), _mm512_maskz_mov_epi64(__mmask8(bits >> 8), r.hi)};
}
inline r16x16 blend(r16x16 off, r16x16 on, uint32_t bits) {
  return {_mm256_mask_mov_epi16(off.v, __mmask16(bits), on.v)};
}
inline r32x16 blend(r32x16 off, r32x16 on, uint32_t bits) {
  return {_mm512_mask_mov_epi32(off.v, __mmask16(bits), on.v)};
}
inline r64x16 blend(r64x16 off, r64x16 on, uint32_t bits) {
  return {_mm512_mask_mov_epi64(off.lo, __mmask8(bits), on.lo),
          _mm512_mask_mov_epi64(off.hi, __mmask8(bits >> 8), on.hi)};
}

inline f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline f32x16 load(const bf16* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline f32x16 load(const f16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline f64x16 load(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
inline void store(float* p, f32x16 v) { _mm512_storeu_ps(p, v.v); }
inline void store(double* p, f64x16 v) {
  _mm512_storeu_pd(p, v.lo);
  _mm512_storeu_pd(p + 8, v.hi);
}
inline f32x16 splat(float v) { return {_mm512_set1_ps(v)}; }
inline f64x16 splat(double v) { return {_mm512_set1_pd(v), _mm512_set1_pd(v)}; }
inline f64x16 widen(f32x16 a) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))};
}
inline f64x16 widen(f64x16 a) { return a; }

inline f32x16 add(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline f32x16 sub(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline f32x16 mul(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline f32x16 abs_of(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline f64x16 add(f64x16 a, f64x16 b) { return {_mm512_add_pd(a.lo, b.lo), _mm512_add_pd(a.hi, b.hi)}; }
inline f64x16 sub(f64x16 a, f64x16 b) { return {_mm512_sub_pd(a.lo, b.lo), _mm512_sub_pd(a.hi, b.hi)}; }
inline f64x16 mul(f64x16 a, f64x16 b) { return {_mm512_mul_pd(a.lo, b.lo), _mm512_mul_pd(a.hi, b.hi)}; }
inline f64x16 abs_of(f64x16 a) { return {_mm512_abs_pd(a.lo), _mm512_abs_pd(a.hi)}; }

inline uint32_t less(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline uint32_t less_equal(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ); }
inline uint32_t less(f64x16 a, f64x16 b) {
  return uint32_t{_mm512_cmp_pd_mask(a.lo, b.lo, _CMP_LT_OQ)} | uint32_t{_mm512_cmp_pd_mask(a.hi, b.hi, _CMP_LT_OQ)}
                                                                    << 8;
}
inline uint32_t less_equal(f64x16 a, f64x16 b) {
  return uint32_t{_mm512_cmp_pd_mask(a.lo, b.lo, _CMP_LE_OQ)} | uint32_t{_mm512_cmp_pd_mask(a.hi, b.hi, _CMP_LE_OQ)}
                                                                    << 8;
}

inline f32x16 multiply_add(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// Arithmetic of the engine's kernels; vec_scalar.h defines each word.
inline f32x16 div(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline f32x16 at_least(f32x16 v, f32x16 lo) { return {_mm512_max_ps(lo.v, v.v)}; }  // the second operand if unordered
inline f32x16 at_most(f32x16 v, f32x16 hi) { return {_mm512_min_ps(hi.v, v.v)}; }
inline f32x16 max_of(f32x16 a, f32x16 b) {
  return {_mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
inline f32x16 keep(f32x16 a, uint32_t bits) { return {_mm512_maskz_mov_ps(__mmask16(bits), a.v)}; }
inline f32x16 blend(f32x16 off, f32x16 on, uint32_t bits) { return {_mm512_mask_mov_ps(off.v, __mmask16(bits), on.v)}; }
inline f32x16 power_of_two(f32x16 shifted) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23))};
}
inline f32x16 permute(const float* from, const int32_t* lane, f32x16 fill) {
  const __m512i index = _mm512_loadu_si512(lane);
  const __mmask16 inside = _mm512_cmpge_epi32_mask(index, _mm512_setzero_si512());
  return {_mm512_mask_permutexvar_ps(fill.v, inside, index, _mm512_loadu_ps(from))};
}
inline float sum_of(f32x16 a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}

// One load for four weights. The splats are shuffles, which do not compete with a multiply-add's memory operand.
struct f32x4s {
  __m512 v;
};
inline f32x4s load_four(const float* p) {
  f32x4s four{_mm512_broadcast_f32x4(_mm_loadu_ps(p))};
  asm("" : "+v"(four.v));  // otherwise the compiler turns each splat back into a load
  return four;
}
template <int I>
inline f32x16 splat_one(f32x4s four) {
  return {_mm512_permute_ps(four.v, I * 0x55)};
}

// Sums of a sparse tile and of a dense tile (for each of its four output channels) that 32 registers hold.
inline constexpr int max_sums = 28, max_dense_sums = 6;

// Stores the first `count` (1..15) of 16 floats; neither side is touched beyond them.
inline void store_first(float* p, const float* from, int count) {
  const __mmask16 first = static_cast<__mmask16>((1u << count) - 1);
  _mm512_mask_storeu_ps(p, first, _mm512_maskz_loadu_ps(first, from));
}

// How many 16-lane sums the registers hold beside the operands of a multiply-add.
inline constexpr int max_tile = 24;

inline uint32_t bits_of_bytes(const uint8_t* p) {
  __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm_test_epi8_mask(v, v);
}
inline void bytes_of_bits(uint8_t* p, uint32_t bits) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_maskz_set1_epi8(__mmask16(bits), 1));
}

// load_first: the first `count` (1..15) lanes from memory, the others 0. store_first: other elements are left alone.
inline f32x16 load_first(const float* p, int count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p)};
}
inline void store_first(float* p, f32x16 v, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v.v);
}

// Compresses in registers, since compressing to memory is microcode. Stores half a vector if that is enough, since most
// stores of whole vectors would cross a cache line.
template <class Index>
inline int compress_nonzeros(f32x16 v, uint32_t base, float* values, Index* index) {
  const __m512i lanes = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                         _mm512_set1_epi32(static_cast<int>(base)));
  const __mmask16 bits = _mm512_cmp_ps_mask(v.v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  const int count = __builtin_popcount(bits);
  const __m512 packed = _mm512_maskz_compress_ps(bits, v.v);
  const __m512i packed_lanes = _mm512_maskz_compress_epi32(bits, lanes);
  if (count <= 8) {
    _mm256_storeu_ps(values, _mm512_castps512_ps256(packed));
    const __m256i half = _mm512_castsi512_si256(packed_lanes);
    if constexpr (sizeof(Index) == 2) _mm_storeu_si128(reinterpret_cast<__m128i*>(index), _mm256_cvtepi32_epi16(half));
    else _mm256_storeu_si256(reinterpret_cast<__m256i*>(index), half);
  } else {
    _mm512_storeu_ps(values, packed);
    if constexpr (sizeof(Index) == 2)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(index), _mm512_cvtepi32_epi16(packed_lanes));
    else _mm512_storeu_si512(index, packed_lanes);
  }
  return count;
}

// Swaps v[i] lane j and v[j] lane i: pairs, fours, then quarters of registers.
inline void transpose(f32x16 (&v)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(v[i].v, v[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(v[i].v, v[i + 1].v);
  }
  auto pd = [](__m512 r) { return _mm512_castps_pd(r); };
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(a[i + j]), pd(a[i + 2 + j])));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(a[i + j]), pd(a[i + 2 + j])));
    }
  for (int j = 0; j < 4; ++j) {
    const __m512 even0 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd0 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
    const __m512 even1 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const __m512 odd1 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    v[j].v = _mm512_shuffle_f32x4(even0, even1, 0x88);
    v[8 + j].v = _mm512_shuffle_f32x4(even0, even1, 0xdd);
    v[4 + j].v = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
    v[12 + j].v = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
  }
}

}  // namespace
}  // namespace secateur::cpu
