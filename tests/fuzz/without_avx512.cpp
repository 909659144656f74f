// Empty tables in place of those of AVX-512, which are not compiled here; the fuzzers force what is.
#include "cpu/kernels.h"
#include "cpu/quads.h"

#if defined(__x86_64__)
namespace secateur::cpu {
extern const Kernels kernels_avx512{};
extern const QuadKernels quads_avx512{}, quads_avx512_vnni{};
}  // namespace secateur::cpu
#endif
