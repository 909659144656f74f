#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
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
bool cpu_has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
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
std::atomic<bool> dot{true};

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

bool dot_available(Isa isa) {
  if (!isa_available(isa)) return false;
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::kAvx2) return cpu_has_avx_vnni();
#elif defined(__aarch64__) && defined(__linux__)
  if (isa == Isa::kNeon) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
  return false;
}

void allow_dot(bool allowed) { dot.store(allowed, std::memory_order_relaxed); }
bool dot_allowed() { return dot.load(std::memory_order_relaxed); }

const QuadKernels& quad_kernels() {
  const Isa isa = current_isa();
  [[maybe_unused]] const bool with_dot = dot_allowed() && dot_available(isa);
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2: return with_dot ? quads_avx2_vnni : quads_avx2;
    case Isa::kAvx512: return with_dot ? quads_avx512_vnni : quads_avx512;
#elif defined(__aarch64__)
    case Isa::kNeon: return with_dot ? quads_neon_dot : quads_neon;
#endif
    default: return quads_scalar;
  }
}

}  // namespace secateur::cpu
