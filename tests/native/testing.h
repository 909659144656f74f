// What the kernels' tests share: checks that count, buffers that end at a wall, element types as doubles.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace secateur::test {

using cpu::bf16;
using cpu::f16;
using cpu::Kernels;

// A failed check throws: the first one of a test says where, with everything needed to run it again.
[[noreturn]] void fail(const std::string& what);
template <class... Parts>
void check(bool ok, const Parts&... parts);

// n elements that end where the next byte cannot be touched: at a page without access, or (under AddressSanitizer)
// at the end of a heap block. Starts are as badly aligned as n makes them.
class Walled {
 public:
  explicit Walled(size_t bytes);
  ~Walled();
  Walled(const Walled&) = delete;
  Walled& operator=(const Walled&) = delete;
  void* data() const { return data_; }

 private:
  void* block_;
  size_t size_;
  void* data_;
};

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n) : walled_(n * sizeof(T)), n_(n) { std::memset(walled_.data(), 0xa5, n * sizeof(T)); }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    if (n_) std::memcpy(walled_.data(), values.data(), n_ * sizeof(T));
  }
  T* data() const { return static_cast<T*>(walled_.data()); }
  T& operator[](size_t i) const { return data()[i]; }
  std::vector<T> values() const { return {data(), data() + n_}; }

 private:
  Walled walled_;
  size_t n_;
};

// Elements as doubles, written without the kernels' own conversions.
inline double value(double x) { return x; }
inline double value(float x) { return x; }
double value(bf16 x);
double value(f16 x);

template <class T>
T element(double x);  // nearest towards zero is near enough: any element will do as an input
template <>
double element(double x);
template <>
float element(double x);
template <>
bf16 element(double x);
template <>
f16 element(double x);

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}
template <class T>
const char* type_name();

inline bool bit(const uint8_t* mask, int64_t i) { return mask[i / 8] >> (i % 8) & 1; }
inline int64_t bytes_of(int64_t bits) { return (bits + 7) / 8; }

// Every tail of one, two and four vectors, and a long row.
std::vector<int64_t> sizes();

using Random = std::mt19937_64;
// Normal values, a few of them replaced by what breaks careless code: zeros of both signs, subnormals, the largest
// finite ones; NaN and Inf where they are asked for.
template <class T>
std::vector<T> inputs(Random& random, int64_t n, bool with_nonfinite);

// One test = one operator on one instruction set.
void test_dispatch();
void test_engine_program(const Kernels& kernels);
void test_engine_data(const Kernels& kernels);
void test_engine_dense(const Kernels& kernels);
void test_engine_linear(const Kernels& kernels);
void test_engine_active(const Kernels& kernels);
void test_engine_int8(const Kernels& kernels);
void test_engine_int8_rows(const Kernels& kernels);
void test_engine_rows(const Kernels& kernels);
void test_engine_sparse(const Kernels& kernels);
void test_mask_apply(const Kernels& kernels);
void test_mask_bits(const Kernels& kernels);
void test_int16_safe(const Kernels& kernels);
void test_sparse_conv2d(const Kernels& kernels);
void test_sparse_dot(const Kernels& kernels);
void test_sparse_tile(const Kernels& kernels);
void test_random_planner(const Kernels& kernels);
void test_statistics_threshold(const Kernels& kernels);
void test_streams(const Kernels& kernels);
void test_threshold_relu(const Kernels& kernels);

// ---- templates ------------------------------------------------------------------------------------------------------

inline std::string show(const char* text) { return text; }
inline std::string show(const std::string& text) { return text; }
template <class N>
std::string show(N number) {
  return std::to_string(number);
}

extern int64_t checks;

template <class... Parts>
void check(bool ok, const Parts&... parts) {
  ++checks;
  if (!ok) fail((show(parts) + ...));
}

template <class T>
std::vector<T> inputs(Random& random, int64_t n, bool with_nonfinite) {
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> pick(0, 15);
  constexpr double inf = std::numeric_limits<double>::infinity();
  std::vector<T> out(n);
  for (T& x : out) {
    switch (pick(random)) {
      case 0: x = element<T>(0.0); break;
      case 1: x = element<T>(-0.0); break;
      case 2: x = element<T>(sizeof(T) == 2 ? 1e-7 : 1e-40); break;  // subnormal as float16, as float32
      case 3: x = element<T>(with_nonfinite ? inf : 100.0); break;
      case 4: x = element<T>(with_nonfinite ? -inf : -100.0); break;
      case 5: x = element<T>(with_nonfinite ? std::numeric_limits<double>::quiet_NaN() : 0.5); break;
      default: x = element<T>(normal(random));
    }
  }
  return out;
}

}  // namespace secateur::test
