#include "vec_avx512.h"
// The algorithms speak the vocabulary above, so it comes first.
#include "cpu/algorithms/table.h"

namespace secateur::cpu {

extern const Kernels kernels_avx512 = make_table("avx512");

}  // namespace secateur::cpu
