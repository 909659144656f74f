// Memory that a thread keeps between calls: page faults cost more than the arithmetic of a small layer.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace secateur::ops {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // At least `count` floats, 64-byte aligned, uninitialized. Valid until the next call on this object.
  float* floats(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(float);
    if (bytes <= size_) return data_;
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
    constexpr size_t kHuge = size_t{2} << 20;
    const size_t unit = bytes >= kHuge ? kHuge : 64;
    const size_t rounded = (bytes + unit - 1) / unit * unit;
    data_ = static_cast<float*>(std::aligned_alloc(unit, rounded));
    if (data_ == nullptr) throw std::bad_alloc();
    if (unit == kHuge) madvise(data_, rounded, MADV_HUGEPAGE);
    size_ = rounded;
    return data_;
  }

 private:
  float* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace secateur::ops
