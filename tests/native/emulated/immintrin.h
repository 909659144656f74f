// Stands in for the compiler's header where the AVX-512 and VNNI kernels are to run on a CPU without them: SIMDe's
// intrinsics, and those that it lacks. Slow, exact, for tests alone.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstdint>
#include <cstring>

// The kernels' empty asm statements name a register of AVX-512.
#define asm(...) static_assert(true)

namespace emulated {

template <class T, class V>
struct Lanes {
  T of[sizeof(V) / sizeof(T)];
  explicit Lanes(const V& v) { std::memcpy(of, &v, sizeof of); }
  Lanes() : of{} {}
  V vector() const {
    V v;
    std::memcpy(&v, of, sizeof v);
    return v;
  }
};

// Each lane, as the other type has it.
template <class To, class ToV, class From, class FromV>
inline ToV converted(FromV a) {
  const Lanes<From, FromV> from(a);
  Lanes<To, ToV> to;
  for (unsigned i = 0; i < sizeof(ToV) / sizeof(To); ++i) to.of[i] = static_cast<To>(from.of[i]);
  return to.vector();
}
inline __m512 cvtepi32_ps(__m512i a) { return converted<float, __m512, int32_t>(a); }
inline __m256i cvtepi32_epi16(__m512i a) { return converted<int16_t, __m256i, int32_t>(a); }
inline __m128i cvtepi32_epi16(__m256i a) { return converted<int16_t, __m128i, int32_t>(a); }
inline __m512i cvtepu16_epi32(__m256i a) { return converted<int32_t, __m512i, uint16_t>(a); }
inline __m512d cvtps_pd(__m256 a) { return converted<double, __m512d, float>(a); }
// vcvtps2dq under a rounding to the nearest: NaN and what does not fit are INT_MIN.
inline __m512i cvt_roundps_epi32(__m512 a, int) {
  const Lanes<float, __m512> from(a);
  Lanes<int32_t, __m512i> to;
  for (int i = 0; i < 16; ++i) {
    const float rounded = std::nearbyint(from.of[i]);
    to.of[i] = rounded >= -0x1p31f && rounded < 0x1p31f ? static_cast<int32_t>(rounded) : INT32_MIN;
  }
  return to.vector();
}
inline __m512 two_halves(__m256 low, __m256 high) {
  __m512 v;
  std::memcpy(&v, &low, sizeof low);
  std::memcpy(reinterpret_cast<char*>(&v) + sizeof low, &high, sizeof high);
  return v;
}
inline __m512 cvtph_ps(__m256i a) {
  return two_halves(_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}
inline __m256 extractf32x8_ps(__m512 a, int which) {
  __m256 half;
  std::memcpy(&half, reinterpret_cast<const char*>(&a) + which * sizeof half, sizeof half);
  return half;
}
inline __m512i mask_i32gather_epi32(__m512i src, __mmask16 mask, __m512i at, const void* p, int scale) {
  const Lanes<int32_t, __m512i> index(at);
  Lanes<int32_t, __m512i> to(src);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1)
      std::memcpy(&to.of[i], static_cast<const char*>(p) + int64_t{index.of[i]} * scale, sizeof to.of[i]);
  return to.vector();
}
template <class T, class V>
inline V maskz_loadu(uint32_t mask, const void* p) {
  Lanes<T, V> to;
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
    if (mask >> i & 1) std::memcpy(&to.of[i], static_cast<const T*>(p) + i, sizeof(T));
  return to.vector();
}
inline void mask_storeu_ps(float* p, __mmask16 mask, __m512 a) {
  const Lanes<float, __m512> from(a);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) p[i] = from.of[i];
}
template <class V>
inline V permute_in_quarters(V a, int order) {
  const Lanes<int32_t, V> from(a);
  Lanes<int32_t, V> to;
  for (int i = 0; i < 16; ++i) to.of[i] = from.of[i / 4 * 4 + (order >> 2 * (i % 4) & 3)];
  return to.vector();
}
inline int32_t reduce_add_epi32(__m512i a) {
  const Lanes<uint32_t, __m512i> from(a);
  uint32_t sum = 0;
  for (uint32_t v : from.of) sum += v;
  return static_cast<int32_t>(sum);
}
inline __m512 shuffle_f32x4(__m512 a, __m512 b, int order) {
  const Lanes<float, __m512> x(a), y(b);
  Lanes<float, __m512> to;
  for (int q = 0; q < 4; ++q)
    std::memcpy(to.of + 4 * q, (q < 2 ? x : y).of + 4 * (order >> 2 * q & 3), 4 * sizeof(float));
  return to.vector();
}
inline __m128i maskz_set1_epi8(__mmask16 mask, int8_t v) {
  Lanes<int8_t, __m128i> to;
  for (int i = 0; i < 16; ++i) to.of[i] = mask >> i & 1 ? v : int8_t{0};
  return to.vector();
}
inline __mmask16 test_epi8_mask(__m128i a, __m128i b) {
  const Lanes<uint8_t, __m128i> x(a), y(b);
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= uint32_t{(x.of[i] & y.of[i]) != 0} << i;
  return static_cast<__mmask16>(mask);
}

}  // namespace emulated

#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#undef _mm512_cvt_roundps_epi32
#define _mm512_cvt_roundps_epi32 emulated::cvt_roundps_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#undef _mm256_cvtepi32_epi16
#define _mm256_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_pd emulated::cvtps_pd
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps emulated::extractf32x8_ps
#undef _mm512_mask_i32gather_epi32
#define _mm512_mask_i32gather_epi32 emulated::mask_i32gather_epi32
#define _mm256_maskz_loadu_epi16(m, p) emulated::maskz_loadu<int16_t, __m256i>(m, p)
#define _mm512_maskz_loadu_epi32(m, p) emulated::maskz_loadu<int32_t, __m512i>(m, p)
#define _mm512_maskz_loadu_ps(m, p) emulated::maskz_loadu<float, __m512>(m, p)
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#undef _mm512_permute_ps
#define _mm512_permute_ps emulated::permute_in_quarters
#undef _mm512_shuffle_epi32
#define _mm512_shuffle_epi32(a, order) emulated::permute_in_quarters(a, static_cast<int>(order))
#define _mm512_reduce_add_epi32 emulated::reduce_add_epi32
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated::shuffle_f32x4
#define _mm_maskz_set1_epi8 emulated::maskz_set1_epi8
#define _mm_test_epi8_mask emulated::test_epi8_mask
#undef _mm512_madd_epi16  // SIMDe 0.7.4 gives it four arguments
#define _mm512_madd_epi16 simde_mm512_madd_epi16
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32

#ifdef SECATEUR_EMULATE_VNNI  // not before: the headers above would take the CPU for one that has it
#define __AVX512VNNI__ 1
#define __AVXVNNI__ 1
#endif
