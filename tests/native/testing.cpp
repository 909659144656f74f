#include "testing.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#define SECATEUR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SECATEUR_ASAN 1
#endif
#endif

namespace secateur::test {

int64_t checks = 0;

void fail(const std::string& what) { throw std::runtime_error(what); }

#if defined(SECATEUR_ASAN)

Walled::Walled(size_t bytes) : block_(std::malloc(bytes)), size_(bytes), data_(block_) {
  if (!block_ && bytes) fail("out of memory");
}
Walled::~Walled() { std::free(block_); }

#else

Walled::Walled(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t inside = (bytes + page - 1) / page * page;
  size_ = inside + page;
  block_ = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block_ == MAP_FAILED) fail("mmap failed");
  if (inside && mprotect(block_, inside, PROT_READ | PROT_WRITE)) fail("mprotect failed");
  data_ = static_cast<char*>(block_) + inside - bytes;
}
Walled::~Walled() { munmap(block_, size_); }

#endif

double value(bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

double value(f16 x) {
  const double sign = x.bits >> 15 ? -1.0 : 1.0;
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31)
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

template <>
double element(double x) {
  return x;
}
template <>
float element(double x) {
  return static_cast<float>(x);
}
template <>
bf16 element(double x) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return {static_cast<uint16_t>(bits >> 16)};
}
template <>
f16 element(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7e00};
  x = std::fabs(x);
  if (x >= 65520) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent;
  std::frexp(x, &exponent);  // x = m * 2^exponent, m in [0.5, 1)
  if (x == 0 || exponent < -13) return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::ldexp(x, 24)))};
  const int fraction = static_cast<int>(std::ldexp(x, 11 - exponent)) - 1024;
  return {static_cast<uint16_t>(sign | (exponent + 14) << 10 | fraction)};
}

template <>
const char* type_name<float>() {
  return "float32";
}
template <>
const char* type_name<double>() {
  return "float64";
}
template <>
const char* type_name<bf16>() {
  return "bfloat16";
}
template <>
const char* type_name<f16>() {
  return "float16";
}

std::vector<int64_t> sizes() {
  std::vector<int64_t> out;
  for (int64_t n = 0; n <= 70; ++n) out.push_back(n);
  for (int64_t n : {127, 128, 129, 1000, 4099}) out.push_back(n);
  return out;
}

}  // namespace secateur::test
