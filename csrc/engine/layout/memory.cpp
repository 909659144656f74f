#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace secateur::engine {
namespace {

// AddressSanitizer builds use no pool and no whole pages, so that an access past the end is seen.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kExact = true;
#elif defined(__has_feature)
constexpr bool kExact = __has_feature(address_sanitizer);
#else
constexpr bool kExact = false;
#endif

constexpr size_t kPage = kExact ? 64 : size_t{2} << 20;
constexpr int64_t kMostFloats = int64_t{1} << 45;  // beyond any address space; a larger size in bytes could overflow
constexpr size_t kKept = kExact ? 0 : 16;          // free buffers that are kept

struct Block {
  float* data;
  size_t bytes;
};
struct Pool {
  std::mutex mutex;
  std::vector<Block> free;
};
Pool& pool() {
  static auto* all = new Pool;  // never destroyed: a buffer may be returned after this library's own teardown
  return *all;
}

}  // namespace

Buffer::Buffer(int64_t floats) {
  if (floats < 0 || floats > kMostFloats) throw std::bad_alloc();
  const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + kPage) / kPage * kPage;
  Pool& p = pool();
  {
    // Takes the smallest that is large enough. Otherwise a buffer that is too small makes way for its successor.
    const std::lock_guard lock(p.mutex);
    size_t best = p.free.size(), smallest = 0;
    for (size_t i = 0; i < p.free.size(); ++i) {
      if (p.free[i].bytes >= bytes && (best == p.free.size() || p.free[i].bytes < p.free[best].bytes)) best = i;
      if (p.free[i].bytes < p.free[smallest].bytes) smallest = i;
    }
    if (best < p.free.size() && p.free[best].bytes <= 4 * bytes + (16 << 20)) {
      data_ = p.free[best].data;
      bytes_ = p.free[best].bytes;
      p.free.erase(p.free.begin() + static_cast<ptrdiff_t>(best));
      return;
    }
    if (!p.free.empty() && p.free[smallest].bytes < bytes) {
      std::free(p.free[smallest].data);
      p.free.erase(p.free.begin() + static_cast<ptrdiff_t>(smallest));
    }
  }
  data_ = static_cast<float*>(std::aligned_alloc(kPage, bytes));
  if (!data_) throw std::bad_alloc();
  bytes_ = bytes;
#ifdef __linux__
  madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  std::memset(data_, 0, bytes);  // no stray NaN or denormal in lanes without a pixel
}

Buffer::~Buffer() {
  if (!data_) return;
  Pool& p = pool();
  {
    const std::lock_guard lock(p.mutex);
    if (p.free.size() < kKept) {
      p.free.push_back({data_, bytes_});
      return;
    }
  }
  std::free(data_);
}

void lock_pool() { pool().mutex.lock(); }
void unlock_pool() { pool().mutex.unlock(); }

}  // namespace secateur::engine
