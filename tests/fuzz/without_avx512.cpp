// Empty tables in place of those of AVX-512, which are not compiled here; the fuzzers force what is.
#include "cpu/int8.h"
#include "cpu/kernels.h"

#if defined(__x86_64__)
namespace secateur::cpu {
extern const Kernels kernels_avx512{};
extern const Int8Kernels int8_avx512{}, int8_avx512_vnni{};
}  // namespace secateur::cpu
#endif
