#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>

namespace secateur::cpu {
namespace {

const Kernels* table_of(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return &kernels_scalar;
#if defined(__x86_64__)
    case Isa::kAvx2: return &kernels_avx2;
    case Isa::kAvx512: return &kernels_avx512;
#elif defined(__aarch64__)
    case Isa::kNeon: return &kernels_neon;
#endif
    default: return nullptr;
  }
}

#if defined(__x86_64__)
// Asked of the CPU itself: clang's __builtin_cpu_supports does not know "f16c" before clang 15.
bool cpu_has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

Isa best_isa() {
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kNeon})
    if (isa_available(isa)) return isa;
  return Isa::kScalar;
}

std::atomic<int> forced{-1};

}  // namespace

const char* isa_name(Isa isa) {
  constexpr const char* names[kIsaCount] = {"scalar", "avx2", "avx512", "neon"};
  return names[static_cast<int>(isa)];
}

bool isa_available(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return true;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") && cpu_has_f16c();
    case Isa::kAvx512:
      return isa_available(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined(__aarch64__)
    case Isa::kNeon: return true;
#endif
    default: return false;
  }
}

Isa current_isa() {
  static const Isa best = best_isa();
  int isa = forced.load(std::memory_order_relaxed);
  return isa < 0 ? best : static_cast<Isa>(isa);
}

void force_isa(Isa isa) { forced.store(static_cast<int>(isa), std::memory_order_relaxed); }
void reset_isa() { forced.store(-1, std::memory_order_relaxed); }

const Kernels& kernels() { return *table_of(current_isa()); }

}  // namespace secateur::cpu
