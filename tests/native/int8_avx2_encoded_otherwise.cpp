// csrc/cpu/int8_avx2_vnni.cpp for CPUs that have its instruction in AVX-512's encoding only.
#if defined(__x86_64__)
#include <immintrin.h>

#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32

#include "cpu/vec_avx2.h"
// int8 words come after those for floats.
#include "cpu/int8_avx2.h"
// The algorithms use the vocabularies above, so they come last.
#include "cpu/algorithms/int8_table.h"

namespace secateur::cpu {

extern const Int8Kernels int8_avx2_vnni_encoded_otherwise = make_int8_table("avx2 vnni, encoded otherwise");

}  // namespace secateur::cpu
#endif
