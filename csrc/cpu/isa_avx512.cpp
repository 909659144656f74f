#include "vec_avx512.h"
// The algorithms use the vocabulary above, so they come last.
#include "cpu/algorithms/table.h"

namespace secateur::cpu {

extern const Kernels kernels_avx512 = make_table("avx512");

}  // namespace secateur::cpu
