// The 16-lane vocabulary in plain C++: it defines every word, and runs on any CPU.
//
// All vocabularies have the same words and the same 16 lanes, so a sum has the same order on every instruction set.
// Everything is in an unnamed namespace: no symbol of a file compiled for AVX-512 may ever be linked into another.
#pragma once

#include <cstring>

#include "kernels.h"

namespace secateur::cpu {
namespace {

template <class E>
struct x16 {
  E lane[16];
};
using f32x16 = x16<float>;
using f64x16 = x16<double>;

template <class T>
inline x16<T> load_raw(const T* p) {
  x16<T> r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
template <class T>
inline void store_raw(T* p, const x16<T>& r) {
  std::memcpy(p, &r, sizeof r);
}
template <class T>
inline x16<T> splat_raw(T value) {
  x16<T> r;
  for (int i = 0; i < 16; ++i) r.lane[i] = value;
  return r;
}
template <class T>
inline x16<T> keep(const x16<T>& r, uint32_t bits) {  // lane i where bit i is set, +0 elsewhere
  x16<T> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = (bits >> i & 1) ? r.lane[i] : T{};
  return out;
}
template <class T>
inline x16<T> blend(const x16<T>& off, const x16<T>& on, uint32_t bits) {
  x16<T> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = (bits >> i & 1) ? on.lane[i] : off.lane[i];
  return out;
}

inline float to_float(float v) { return v; }
inline float to_float(bf16 v) {
  uint32_t u = uint32_t{v.bits} << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline float to_float(f16 v) {
  uint32_t sign = uint32_t(v.bits & 0x8000) << 16, rest = v.bits & 0x7fff;
  uint32_t u;
  if (rest >= 0x7c00) {  // Inf, NaN
    u = sign | 0x7f800000 | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {  // normal
    u = sign | ((rest << 13) + 0x38000000);
  } else {  // subnormal: rest * 2^-24 is exact in float
    float f = float(rest) * 5.9604644775390625e-8f;
    std::memcpy(&u, &f, 4);
    u |= sign;
  }
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

template <class T>
inline f32x16 load(const T* p) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = to_float(p[i]);
  return r;
}
inline f64x16 load(const double* p) { return load_raw(p); }
inline void store(double* p, const f64x16& v) { store_raw(p, v); }
inline void store(float* p, const f32x16& v) { store_raw(p, v); }
inline f32x16 splat(float v) { return splat_raw(v); }
inline f64x16 splat(double v) { return splat_raw(v); }
inline f64x16 widen(const f32x16& v) {
  f64x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = v.lane[i];
  return r;
}
inline f64x16 widen(const f64x16& v) { return v; }

template <class E>
inline x16<E> add(const x16<E>& a, const x16<E>& b) {
  x16<E> r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] + b.lane[i];
  return r;
}
template <class E>
inline x16<E> sub(const x16<E>& a, const x16<E>& b) {
  x16<E> r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] - b.lane[i];
  return r;
}
template <class E>
inline x16<E> mul(const x16<E>& a, const x16<E>& b) {
  x16<E> r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] * b.lane[i];
  return r;
}
template <class E>
inline x16<E> abs_of(const x16<E>& a) {
  x16<E> r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] < 0 ? -a.lane[i] : (a.lane[i] == 0 ? E(0) : a.lane[i]);
  return r;
}
// Comparisons give 16 bits, all of them false if either side is NaN.
template <class E>
inline uint32_t less(const x16<E>& a, const x16<E>& b) {
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= uint32_t(a.lane[i] < b.lane[i]) << i;
  return bits;
}
template <class E>
inline uint32_t less_equal(const x16<E>& a, const x16<E>& b) {
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= uint32_t(a.lane[i] <= b.lane[i]) << i;
  return bits;
}

// a * b + c; unfused here (a software fma would cost fifty times as much), fused if the CPU has it.
inline f32x16 multiply_add(const f32x16& a, const f32x16& b, const f32x16& c) { return add(mul(a, b), c); }
inline float multiply_add(float a, float b, float c) { return a * b + c; }

// Arithmetic of the engine's kernels. NaN stays NaN throughout.
inline f32x16 div(const f32x16& a, const f32x16& b) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] / b.lane[i];
  return r;
}
inline f32x16 at_least(const f32x16& v, const f32x16& lo) {  // lo is not NaN
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = lo.lane[i] > v.lane[i] ? lo.lane[i] : v.lane[i];
  return r;
}
inline f32x16 at_most(const f32x16& v, const f32x16& hi) {  // hi is not NaN
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = hi.lane[i] < v.lane[i] ? hi.lane[i] : v.lane[i];
  return r;
}
inline f32x16 max_of(const f32x16& a, const f32x16& b) {  // NaN if either side is
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] > b.lane[i] || a.lane[i] != a.lane[i] ? a.lane[i] : b.lane[i];
  return r;
}
// 2^i for shifted = 1.5 * 2^23 + 127 + i, -127 <= i <= 128: moves i + 127 from the low bits to the exponent.
inline f32x16 power_of_two(const f32x16& shifted) {
  uint32_t bits[16];
  std::memcpy(bits, &shifted, sizeof bits);
  for (uint32_t& b : bits) b <<= 23;
  f32x16 r;
  std::memcpy(&r, bits, sizeof bits);
  return r;
}
// Lane i is from[lane[i]], or fill's if lane[i] is -1.
inline f32x16 permute(const float* from, const int32_t* lane, const f32x16& fill) {
  f32x16 r = fill;
  for (int i = 0; i < 16; ++i)
    if (lane[i] >= 0) r.lane[i] = from[lane[i]];
  return r;
}
inline float sum_of(const f32x16& a) {  // adds halves, four times
  float sum[8];
  for (int i = 0; i < 8; ++i) sum[i] = a.lane[i] + a.lane[i + 8];
  for (int half = 4; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
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

// Sums of a sparse tile and of a dense tile (for each of its four output channels) that the registers hold.
inline constexpr int max_sums = 4, max_dense_sums = 1;

// Stores the first `count` (1..15) of 16 floats; neither side is touched beyond them.
inline void store_first(float* p, const float* from, int count) {
  for (int i = 0; i < count; ++i) p[i] = from[i];
}

// How many 16-lane sums the registers hold beside the operands of a multiply-add.
inline constexpr int max_tile = 2;

inline uint32_t bits_of_bytes(const uint8_t* p) {
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= uint32_t(p[i] != 0) << i;
  return bits;
}
inline void bytes_of_bits(uint8_t* p, uint32_t bits) {
  for (int i = 0; i < 16; ++i) p[i] = bits >> i & 1;
}

}  // namespace
}  // namespace secateur::cpu

// load_first, store_first of a vector, transpose.
#include "lane_moves.h"
