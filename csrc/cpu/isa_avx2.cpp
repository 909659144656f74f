#include "vec_avx2.h"
// The algorithms use the vocabulary above, so they come last.
#include "cpu/algorithms/table.h"

namespace secateur::cpu {

extern const Kernels kernels_avx2 = make_table("avx2");

}  // namespace secateur::cpu
