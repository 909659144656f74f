// The threads of one emulated block: fibers that run in turn, each until it waits or ends.
//
// A fiber is made once (makecontext) and then serves block after block. Switches are the compiler's bare jumps:
// swapcontext asks the kernel for the signal mask every time, and took four fifths of the tests' time.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace secateur::cuda {

enum class Order { kForward, kReverse, kShuffled };
inline int in_order(Order order, int i, int n) {
  if (order == Order::kReverse) return n - 1 - i;
  if (order == Order::kShuffled)
    return static_cast<int>((int64_t{i} * 101 + 57) % n);  // 101 is prime to n, a power of 2
  return i;
}

class Fibers {
 public:
  enum State { kReady, kWarp, kBlock, kDone };  // kWarp, kBlock: what it waits for

  Fibers(int count, int warp) : warp_(warp), fibers_(count) {}

  // Called by a fiber.
  void wait(State state) {
    fibers_[current_].state = state;
    leave();
  }

  void run(const std::function<void(int)>& body, Order order) {
    body_ = &body;
    const int n = static_cast<int>(fibers_.size());
    for (Fiber& fiber : fibers_) fiber.state = kReady;
    for (bool all_done = false; !all_done;) {
      for (int i = 0; i < n; ++i) {
        current_ = in_order(order, i, n);
        if (fibers_[current_].state != kDone) resume(fibers_[current_]);
      }
      check_waits();
      all_done = true;
      for (const Fiber& fiber : fibers_) all_done = all_done && fiber.state == kDone;
    }
  }

 private:
  static constexpr size_t kStack = 64 << 10;
  struct Fiber {
    void* place[5];  // where it goes on
    std::unique_ptr<char[]> stack;
    State state = kDone;
  };

  // Everyone has run as far as it could: whoever waits must wait together, or a GPU would hang or worse.
  void check_waits() const {
    const int n = static_cast<int>(fibers_.size());
    for (int i = 0; i < n; ++i) {
      const State state = fibers_[i].state;
      const int peer = state == kBlock ? 0 : i / warp_ * warp_;
      if (state != fibers_[peer].state &&
          (state == kBlock || state == kWarp || fibers_[peer].state == kWarp || fibers_[peer].state == kBlock)) {
        std::fprintf(stderr, "threads %d and %d part at a wait (states %d, %d)\n", peer, i, fibers_[peer].state, state);
        std::abort();
      }
    }
  }

  [[gnu::no_sanitize_address]] static void enter(unsigned low, unsigned high) {
    Fibers* self = reinterpret_cast<Fibers*>(static_cast<uintptr_t>(low) | static_cast<uintptr_t>(high) << 32);
    self->entered(nullptr);
    for (;;) {
      const int me = self->current_;
      (*self->body_)(me);
      self->fibers_[me].state = kDone;
      self->leave();
    }
  }

  // These frames are left by a jump: the sanitizer must not mark their stack.
  [[gnu::noinline, gnu::no_sanitize_address]] void start(Fiber& fiber) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    const uintptr_t self = reinterpret_cast<uintptr_t>(this);
    makecontext(&context, reinterpret_cast<void (*)()>(&Fibers::enter), 2, static_cast<unsigned>(self),
                static_cast<unsigned>(self >> 32));
    setcontext(&context);
  }

  [[gnu::noinline, gnu::no_sanitize_address]] static void jump(void** place) { __builtin_longjmp(place, 1); }

  // The scheduler's side and the fiber's side of a switch. The sanitizer is told of both.
  [[gnu::noinline, gnu::no_sanitize_address]] void resume(Fiber& fiber) {
    const bool fresh = !fiber.stack;
    if (fresh) fiber.stack = std::make_unique<char[]>(kStack);
    void* fake = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStack);
#endif
    if (!__builtin_setjmp(scheduler_)) {
      if (fresh) start(fiber);
      else jump(fiber.place);
    }
    back(fake);
  }
  [[gnu::noinline, gnu::no_sanitize_address]] void leave() {
    Fiber& fiber = fibers_[current_];
    void* fake = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake, bottom_, size_);
#endif
    if (!__builtin_setjmp(fiber.place)) jump(scheduler_);
    entered(fake);
  }
  void entered([[maybe_unused]] void* fake) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &bottom_, &size_);
#endif
  }
  void back([[maybe_unused]] void* fake) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  int warp_;
  std::vector<Fiber> fibers_;
  void* scheduler_[5];
  int current_ = 0;
  const std::function<void(int)>* body_ = nullptr;
  const void* bottom_ = nullptr;  // the scheduler's stack, for the sanitizer
  size_t size_ = 0;
};

}  // namespace secateur::cuda
