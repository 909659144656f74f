// Objects that operators refer to by number, since a dispatcher's schema has no type for them.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace secateur {

// Ids start at 1 and are never reused. Thread-safe. T has a mutex().
template <typename T>
class Registry {
 public:
  // Never destroyed: its objects may be released after this library's own teardown.
  static Registry& instance() {
    static auto* const one = new Registry;
    return *one;
  }

  int64_t hold(std::shared_ptr<T> object) {
    const std::lock_guard lock(mutex_);
    objects_.emplace(next_, std::move(object));
    return next_++;
  }
  void release(int64_t id) {
    std::shared_ptr<T> last;  // destroyed after the lock is released
    const std::lock_guard lock(mutex_);
    const auto found = objects_.find(id);
    if (found == objects_.end()) return;
    last = std::move(found->second);
    objects_.erase(found);
  }
  std::shared_ptr<T> find(int64_t id) {  // null if there is none
    const std::lock_guard lock(mutex_);
    const auto found = objects_.find(id);
    return found == objects_.end() ? nullptr : found->second;
  }

  // Locks the registry and all objects in it, before a fork (ops/fork_locks.cpp).
  void lock_all() {
    mutex_.lock();
    for (const auto& [id, object] : objects_) object->mutex().lock();
  }
  void unlock_all() {
    for (const auto& [id, object] : objects_) object->mutex().unlock();
    mutex_.unlock();
  }

 private:
  Registry() = default;
  // Not a shared_mutex: glibc requires the thread id that locked it to unlock it, and a forked child has another one.
  std::mutex mutex_;
  int64_t next_ = 1;
  std::unordered_map<int64_t, std::shared_ptr<T>> objects_;
};

}  // namespace secateur
