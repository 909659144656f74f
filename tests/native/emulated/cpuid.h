// A CPU with everything, for dispatch.cpp beside emulated instructions.
#pragma once

#define bit_F16C 0x20000000u
#define __builtin_cpu_supports(feature) true

inline bool __get_cpuid_count(unsigned, unsigned, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
  *a = *b = *c = *d = ~0u;
  return true;
}
inline bool __get_cpuid(unsigned, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
  return __get_cpuid_count(0, 0, a, b, c, d);
}
