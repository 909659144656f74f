#include "vec_neon.h"
// The algorithms speak the vocabulary above, so it comes first.
#include "cpu/algorithms/table.h"

namespace secateur::cpu {

extern const Kernels kernels_neon = make_table("neon");

}  // namespace secateur::cpu
