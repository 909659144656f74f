#include "vec_avx2.h"
// The algorithms speak the vocabulary above, so it comes first.
#include "cpu/algorithms/table.h"

namespace secateur::cpu {

extern const Kernels kernels_avx2 = make_table("avx2");

}  // namespace secateur::cpu
