#include "threads.h"

#include <pthread.h>

#include <atomic>

namespace secateur::ops {
namespace {

std::atomic<bool> in_child{false};

void after_fork_in_child() { in_child.store(true, std::memory_order_relaxed); }

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, after_fork_in_child);

}  // namespace

bool forked() { return in_child.load(std::memory_order_relaxed); }

}  // namespace secateur::ops
