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

#if defined(__x86_64__)
// Asks CPUID directly: clang's __builtin_cpu_supports does not know "f16c" before clang 15.
bool cpu_has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
bool cpu_has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") && cpu_has_f16c();
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_vnni() { return __builtin_cpu_supports("avx512vnni"); }
#elif defined(__aarch64__) && defined(__linux__)
bool has_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
#elif defined(__aarch64__)
bool has_dotprod() { return false; }
#endif
bool always() { return true; }
bool never() { return false; }

// One row per instruction set, in the order of Isa: later ones are better. Kernels are null where this build lacks the
// instruction set.
struct Row {
  const char* name;
  bool (*available)();
  const Kernels* kernels;
  const Int8Kernels* quads;
  bool (*dot_available)();  // called only if `available` is true
  const Int8Kernels* dots;  // with a product of four bytes
};
constexpr Row kRows[] = {
    {"scalar", always, &kernels_scalar, &int8_scalar, never, nullptr},
#if defined(__x86_64__)
    {"avx2", has_avx2, &kernels_avx2, &int8_avx2, cpu_has_avx_vnni, &int8_avx2_vnni},
    {"avx512", has_avx512, &kernels_avx512, &int8_avx512, has_avx512_vnni, &int8_avx512_vnni},
#else
    {"avx2", never, nullptr, nullptr, never, nullptr},
    {"avx512", never, nullptr, nullptr, never, nullptr},
#endif
#if defined(__aarch64__)
    {"neon", always, &kernels_neon, &int8_neon, has_dotprod, &int8_neon_dot},
#else
    {"neon", never, nullptr, nullptr, never, nullptr},
#endif
};
static_assert(sizeof kRows / sizeof kRows[0] == kIsaCount);

const Row& row_of(Isa isa) { return kRows[static_cast<int>(isa)]; }

Isa best_isa() {
  int best = kIsaCount - 1;
  while (!kRows[best].available()) --best;
  return static_cast<Isa>(best);
}

std::atomic<int> forced{-1};
std::atomic<bool> dot{true};

}  // namespace

const char* isa_name(Isa isa) { return row_of(isa).name; }
bool isa_available(Isa isa) { return row_of(isa).available(); }

Isa current_isa() {
  static const Isa best = best_isa();
  int isa = forced.load(std::memory_order_relaxed);
  return isa < 0 ? best : static_cast<Isa>(isa);
}

void force_isa(Isa isa) { forced.store(static_cast<int>(isa), std::memory_order_relaxed); }
void reset_isa() { forced.store(-1, std::memory_order_relaxed); }

const Kernels& kernels() { return *row_of(current_isa()).kernels; }

bool dot_available(Isa isa) { return isa_available(isa) && row_of(isa).dot_available(); }

void allow_dot(bool allowed) { dot.store(allowed, std::memory_order_relaxed); }
bool dot_allowed() { return dot.load(std::memory_order_relaxed); }

const Int8Kernels& int8_kernels() {
  const Isa isa = current_isa();
  const Row& row = row_of(isa);
  return dot_allowed() && dot_available(isa) ? *row.dots : *row.quads;
}

}  // namespace secateur::cpu
