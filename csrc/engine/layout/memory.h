// Memory for arenas: on huge pages if the system has them, kept between calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace secateur::engine {

// 64-byte aligned floats from a pool that all programs share, returned to it on destruction. Throws std::bad_alloc.
class Buffer {
 public:
  explicit Buffer(int64_t floats);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&&) = delete;
  Buffer(const Buffer&) = delete;
  float* data() const { return data_; }

 private:
  float* data_ = nullptr;
  size_t bytes_ = 0;
};

// Locks the pool before a fork (ops/fork_locks.cpp).
void lock_pool();
void unlock_pool();

}  // namespace secateur::engine
