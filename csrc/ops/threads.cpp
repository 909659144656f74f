#include "threads.h"

#include <pthread.h>

#include <atomic>

#include "../engine/memory.h"
#include "../engine/program.h"
#include "../formats/sparse_layer.h"

namespace secateur::ops {
namespace {

std::atomic<bool> in_child{false};

// A fork copies the thread that forks and no other: a lock that another one holds at that moment would stay locked in
// the child. So the forking thread takes them all first, outer ones before inner ones.
void before_fork() {
  lock_layers();
  engine::lock_programs();
  engine::lock_pool();
}

void after_fork() {
  engine::unlock_pool();
  engine::unlock_programs();
  unlock_layers();
}

void after_fork_in_child() {
  in_child.store(true, std::memory_order_relaxed);
  after_fork();
}

[[maybe_unused]] const int registered = pthread_atfork(before_fork, after_fork, after_fork_in_child);

}  // namespace

bool forked() { return in_child.load(std::memory_order_relaxed); }

}  // namespace secateur::ops
