// Activations: clamps, thresholds, and those with an exponential. Every instruction set uses the same operations. NaN
// stays NaN.
//
// Coefficients: exp and tanh from Cephes (S. Moshier, expf.c and tanhf.c); erfc by a minimax fit, see below.
#pragma once

#include "cpu/engine.h"

namespace secateur::cpu {
namespace {

template <int N>
inline f32x16 polynomial(f32x16 x, const float (&highest_first)[N]) {
  f32x16 sum = splat(highest_first[0]);
  for (int i = 1; i < N; ++i) sum = multiply_add(sum, x, splat(highest_first[i]));
  return sum;
}

// exp(x), 2 ulp for -87.3 < x < 88.3; 1.2e-38 below, infinity above.
inline f32x16 exp_of(f32x16 x) {
  constexpr float log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  // Adding 1.5 * 2^23 + 127 to a small number leaves the rounded number, plus 127, in the low bits.
  constexpr float rounder = 12583039.0f;
  x = at_most(at_least(x, splat(-87.3f)), splat(88.8f));
  const f32x16 shifted = add(mul(x, splat(log2_e)), splat(rounder));
  const f32x16 n = sub(shifted, splat(rounder));
  // Nine bits of ln2_high times eight bits of n: exact, fused or not.
  f32x16 r = sub(x, mul(n, splat(ln2_high)));
  r = sub(r, mul(n, splat(ln2_low)));
  const f32x16 p = polynomial(
      r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f});
  return mul(add(multiply_add(mul(r, r), p, r), splat(1.0f)), power_of_two(shifted));
}

inline f32x16 sigmoid_of(f32x16 v) { return div(splat(1.0f), add(splat(1.0f), exp_of(sub(splat(0.0f), v)))); }

inline f32x16 tanh_of(f32x16 v) {
  const f32x16 size = abs_of(v), square = mul(v, v);
  const f32x16 p = polynomial(
      square, {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f});
  const f32x16 near = multiply_add(mul(v, square), p, v);
  const f32x16 far =
      sub(splat(1.0f), div(splat(2.0f), add(exp_of(mul(at_most(size, splat(20.0f)), splat(2.0f))), splat(1.0f))));
  const f32x16 signed_far = blend(far, sub(splat(0.0f), far), less(v, splat(0.0f)));
  return blend(near, signed_far, less_equal(splat(0.625f), size));
}

// v * (1 + erf(v / sqrt(2))) / 2 as max(v, 0) - |v| * erfc(|v| / sqrt(2)) / 2: small results keep their digits.
// erfc(z) = exp(-z^2) * t * P(t), t = 1 / (1 + 0.4 z), P fitted to 6e-8 (relative) over 0 <= z <= 10.
inline f32x16 gelu_of(f32x16 v) {
  const f32x16 size = at_most(abs_of(v), splat(14.0f));  // avoids inf * 0
  const f32x16 z = mul(size, splat(0.70710678f));
  const f32x16 t = div(splat(1.0f), multiply_add(z, splat(0.4f), splat(1.0f)));
  const f32x16 p = polynomial(
      t, {0.0412549264729023f, -0.14032825827598572f, 0.08400552719831467f, 0.08794400095939636f, 0.07977012544870377f,
          0.19338759779930115f, 0.20188896358013153f, 0.22644293308258057f, 0.22563424706459045f});
  const f32x16 erfc = mul(exp_of(mul(mul(size, size), splat(-0.5f))), mul(t, p));
  return sub(at_least(v, splat(0.0f)), mul(mul(size, splat(0.5f)), erfc));
}

template <Act A>
struct ActOf {
  static constexpr Act act = A;
};

template <Act A>
inline f32x16 activated(f32x16 v, float lo, float hi, f32x16 theta) {
  if constexpr (A == Act::kClamp) return at_most(at_least(v, splat(lo)), splat(hi));
  if constexpr (A == Act::kThreshold) return keep(at_most(v, splat(hi)), ~less(v, theta) & 0xffff);
  if constexpr (A == Act::kLeaky) return blend(v, mul(v, splat(lo)), less(v, splat(0.0f)));
  if constexpr (A == Act::kHardswish || A == Act::kHardsigmoid) {
    const f32x16 ramp = at_most(at_least(add(v, splat(3.0f)), splat(0.0f)), splat(6.0f));
    return div(A == Act::kHardswish ? mul(v, ramp) : ramp, splat(6.0f));
  }
  if constexpr (A == Act::kSigmoid) return sigmoid_of(v);
  if constexpr (A == Act::kSilu) return div(v, add(splat(1.0f), exp_of(sub(splat(0.0f), v))));
  if constexpr (A == Act::kGelu) return gelu_of(v);
  if constexpr (A == Act::kTanh) return tanh_of(v);
  return v;
}

// Calls body(ActOf<the activation>): the choice is made once, outside the loop over vectors.
template <class Body>
inline void with_activation(Act act, const Body& body) {
  switch (act) {
    case Act::kNone: return body(ActOf<Act::kNone>{});
    case Act::kClamp: return body(ActOf<Act::kClamp>{});
    case Act::kThreshold: return body(ActOf<Act::kThreshold>{});
    case Act::kLeaky: return body(ActOf<Act::kLeaky>{});
    case Act::kHardswish: return body(ActOf<Act::kHardswish>{});
    case Act::kHardsigmoid: return body(ActOf<Act::kHardsigmoid>{});
    case Act::kSigmoid: return body(ActOf<Act::kSigmoid>{});
    case Act::kSilu: return body(ActOf<Act::kSilu>{});
    case Act::kGelu: return body(ActOf<Act::kGelu>{});
    case Act::kTanh: return body(ActOf<Act::kTanh>{});
  }
}

// `count` vectors, in-place. Not inlined: otherwise every tile would contain every activation.
[[gnu::noinline]] inline void activate(float* v, int64_t count, const Activation& activation, f32x16 theta) {
  with_activation(activation.act, [&](auto of) {
    for (int64_t i = 0; i < count; ++i)
      store(v + 16 * i, activated<decltype(of)::act>(load(v + 16 * i), activation.lo, activation.hi, theta));
  });
}

}  // namespace
}  // namespace secateur::cpu
