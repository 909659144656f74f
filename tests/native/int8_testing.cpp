#include "int8_testing.h"

#include <cstdio>

#include "cpu/dispatch.h"

#if defined(__x86_64__)
namespace secateur::cpu {
extern const Int8Kernels int8_avx2_vnni_encoded_otherwise;
}
#endif

namespace secateur::test {

void for_each_int8_table(void (*test)(const Int8Kernels& kernels)) {
  const cpu::Isa isa = cpu::current_isa();
  for (bool dot : {false, true}) {
    if (dot && !cpu::dot_available(isa)) {
      if (isa != cpu::Isa::kScalar) std::printf("%-8s products of four bytes: not on this CPU\n", cpu::isa_name(isa));
      continue;
    }
    cpu::allow_dot(dot);
    test(cpu::int8_kernels());
  }
  cpu::allow_dot(true);
#if defined(__x86_64__)
  if (isa != cpu::Isa::kAvx2) return;
  // Asks the CPU itself: the dispatcher may report emulated instructions.
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
    test(cpu::int8_avx2_vnni_encoded_otherwise);
  else std::printf("%-8s products of four bytes, in AVX-512's encoding: not on this CPU\n", cpu::isa_name(isa));
#endif
}

}  // namespace secateur::test
