// What kernel bodies share: element types, groups of 8 elements (one mask byte), vector loads where they are aligned.
//
// Bodies are structs of arguments with a template member run(thread, shared). `thread` says where it is in the grid and
// waits for its warp or block: device/launch.h gives the real one, tests/cuda/shim/launch.h an emulated one, so the
// very same bodies run under g++, with sanitizers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__CUDACC__)
#define SECATEUR_DEVICE __device__ __forceinline__
#define SECATEUR_ANY_TYPE                    // a type that may stand for any other in memory
#define SECATEUR_UNROLLED _Pragma("unroll")  // before a loop over registers: rolled, they would lie in local memory
#define SECATEUR_ROLLED _Pragma("unroll 1")  // before a loop: its unrolled form would take registers from the others
#else
#define SECATEUR_DEVICE inline
#define SECATEUR_ANY_TYPE [[gnu::may_alias]]
#define SECATEUR_UNROLLED
#define SECATEUR_ROLLED
#endif

namespace secateur::cuda {

// The type that comparisons run in.
template <class T>
struct Compare {
  using type = float;
};
template <>
struct Compare<double> {
  using type = double;
};
template <class T>
using compare_t = typename Compare<T>::type;

SECATEUR_DEVICE float float_of_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}
SECATEUR_DEVICE float widen(float v) { return v; }
SECATEUR_DEVICE double widen(double v) { return v; }
SECATEUR_DEVICE float widen(bf16 v) { return float_of_bits(uint32_t{v.bits} << 16); }
SECATEUR_DEVICE float widen(f16 v) {
  // The exponent is rebiased by a product, which is exact for subnormals too; Inf and NaN get their exponent by hand.
  const uint32_t rest = v.bits & 0x7fffu;
  uint32_t u;
  const float f = float_of_bits(rest << 13) * 0x1p112f;
  memcpy(&u, &f, sizeof u);
  if (rest >= 0x7c00) u = 0x7f800000u | (rest & 0x3ffu) << 13;
  return float_of_bits(u | uint32_t(v.bits & 0x8000u) << 16);
}
SECATEUR_DEVICE float magnitude(float v) { return fabsf(v); }
SECATEUR_DEVICE double magnitude(double v) { return fabs(v); }

// Quotient of non-negative numbers; the 32-bit routine is several times faster and nearly always suffices.
SECATEUR_DEVICE int64_t divide(int64_t a, int64_t b) {
  if (static_cast<uint64_t>(a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// Eight elements: 16-byte accesses for 2-, 4- and 8-byte elements (one, two, four of them), 8-byte ones for bytes.
template <class T>
struct alignas(sizeof(T) == 1 ? 8 : 16) Eight {
  T lane[8];
};

// The same as the registers that they come in.
template <class T>
struct alignas(16) SECATEUR_ANY_TYPE Raw {
  uint32_t word[2 * sizeof(T)];
};

template <class T>
SECATEUR_DEVICE bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Eight<T>) == 0;
}

// The first `count` of 8; the rest are zeros. Rows whose length is no multiple of 8, and views that start off
// alignment, take the loop: its accesses are not coalesced, but neighbours share their lines in L1, so memory moves no
// more bytes.
template <class T>
SECATEUR_DEVICE Eight<T> load_8(const T* p, int count) {
  if (count == 8 && is_aligned(p)) return *reinterpret_cast<const Eight<T>*>(p);
  Eight<T> r;
  for (int i = 0; i < 8; ++i) r.lane[i] = i < count ? p[i] : T{};
  return r;
}
template <class T>
SECATEUR_DEVICE void store_8(T* p, const Eight<T>& v, int count) {
  if (count == 8 && is_aligned(p)) {
    *reinterpret_cast<Eight<T>*>(p) = v;
    return;
  }
  for (int i = 0; i < 8; ++i)
    if (i < count) p[i] = v.lane[i];
}

// A group = one byte of mask = up to 8 elements of one row. Group g owns mask[g], so no two threads share a byte.
struct Group {
  int64_t at;  // its first element, counted over the whole tensor
  int count;   // 1..8
};
SECATEUR_DEVICE Group group_of(const View& view, int64_t group) {
  const int64_t row = view.rows == 1 ? 0 : divide(group, view.bytes);
  const int64_t first = (group - row * view.bytes) * 8, left = view.columns - first;
  return {row * view.columns + first, left < 8 ? static_cast<int>(left) : 8};
}

// body(i) for this thread's share of [0, n): a grid of any size does all the work.
template <class Thread, class Body>
SECATEUR_DEVICE void grid_stride(const Thread& thread, int64_t n, const Body& body) {
  const int64_t step = thread.blocks() * thread.threads();
  for (int64_t i = thread.block() * thread.threads() + thread.thread(); i < n; i += step) body(i);
}

struct NoShared {};

}  // namespace secateur::cuda
