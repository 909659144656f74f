// A fork copies only the forking thread: a lock that another thread holds at that moment would stay locked in the
// child. So the forking thread takes all locks first, outer ones before inner ones.
#include <pthread.h>

#include "engine/layout/memory.h"
#include "engine/plan/held_program.h"
#include "formats/sparse_layer.h"

namespace secateur::ops {
namespace {

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

[[maybe_unused]] const int registered = pthread_atfork(before_fork, after_fork, after_fork);

}  // namespace
}  // namespace secateur::ops
