#include "vec_neon.h"
// The algorithms use the vocabulary above, so they come last.
#include "cpu/algorithms/table.h"

namespace secateur::cpu {

extern const Kernels kernels_neon = make_table("neon");

}  // namespace secateur::cpu
