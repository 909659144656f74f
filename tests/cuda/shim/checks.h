// Buffers that notice, numbers to fill them with, and checks that say where.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace checks {

inline int64_t passed = 0;

template <class... Args>
void that(bool ok, const char* format, Args... args) {
  ++passed;
  if (ok) return;
  std::fprintf(stderr, "FAILED: ");
  std::fprintf(stderr, format, args...);
  std::fprintf(stderr, "\n");
  std::exit(1);
}

// `n` elements, `offset` elements off a 16-byte boundary. They end where the allocation ends, so that the address
// sanitizer sees the first byte too far; the elements before them are watched.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n, int64_t offset = 0)
      : n_(n), offset_(offset), raw_(static_cast<unsigned char*>(std::malloc((n + offset) * sizeof(T)))) {
    std::memset(raw_, kFill, (n + offset) * sizeof(T));
  }
  ~Buffer() {
    for (size_t i = 0; i < offset_ * sizeof(T); ++i) that(raw_[i] == kFill, "wrote %zu bytes before a buffer", i);
    std::free(raw_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return reinterpret_cast<T*>(raw_) + offset_; }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return n_; }

 private:
  static constexpr unsigned char kFill = 0xa5;
  int64_t n_, offset_;
  unsigned char* raw_;
};

// The same numbers in every run (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53 * 2 - 1; }  // [-1, 1)

 private:
  uint64_t state_;
};

inline int bit(const uint8_t* mask, int64_t i) { return mask[i / 8] >> (i % 8) & 1; }

}  // namespace checks
