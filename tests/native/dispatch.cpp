#include "cpu/dispatch.h"

#include <string>

#include "testing.h"

namespace secateur::test {

// Forcing an instruction set gives the table that carries its name, and only its own: a table filled from another
// file's functions (a shared weak symbol) would show the same pointers.
void test_dispatch() {
  const Kernels* seen[cpu::kIsaCount] = {};
  for (int i = 0; i < cpu::kIsaCount; ++i) {
    const cpu::Isa isa = static_cast<cpu::Isa>(i);
    if (!cpu::isa_available(isa)) continue;
    cpu::force_isa(isa);
    check(cpu::current_isa() == isa, "forced ", cpu::isa_name(isa), ", got ", cpu::isa_name(cpu::current_isa()));
    const Kernels& table = cpu::kernels();
    check(std::string(table.name) == cpu::isa_name(isa), "forced ", cpu::isa_name(isa), ", its table says ",
          table.name);
    for (int j = 0; j < i; ++j) {
      if (!seen[j]) continue;
      check(table.mask_apply_32 != seen[j]->mask_apply_32, table.name, " shares mask_apply with ", seen[j]->name);
      check(table.threshold_relu_f32 != seen[j]->threshold_relu_f32, table.name, " shares threshold_relu with ",
            seen[j]->name);
    }
    seen[i] = &table;
  }
  cpu::reset_isa();
  const cpu::Isa best = cpu::current_isa();
  check(cpu::isa_available(best), "the best instruction set is not available");
#if defined(__x86_64__)
  check(best == cpu::Isa::kAvx512 || !cpu::isa_available(cpu::Isa::kAvx512), "AVX-512 is here and not chosen");
  check(best != cpu::Isa::kScalar || !cpu::isa_available(cpu::Isa::kAvx2), "AVX2 is here and not chosen");
#elif defined(__aarch64__)
  check(best == cpu::Isa::kNeon, "NEON is here and not chosen");
#endif
}

}  // namespace secateur::test
