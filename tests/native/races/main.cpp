// What threads share, under ThreadSanitizer: programs, plans, layers and their registries (../engine_program.cpp), on
// every instruction set that is compiled here and that this CPU has.
#include <cstdio>
#include <exception>

#include "../testing.h"
#include "cpu/dispatch.h"

using namespace secateur;

int main() {
  int failed = 0;
  for (cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kNeon}) {
    if (!cpu::isa_available(isa)) continue;
    cpu::force_isa(isa);
    try {
      test::test_engine_program(cpu::kernels());
      std::printf("%-8s no races seen\n", cpu::isa_name(isa));
    } catch (const std::exception& error) {
      std::printf("%-8s FAILED: %s\n", cpu::isa_name(isa), error.what());
      ++failed;
    }
  }
  return failed;
}
