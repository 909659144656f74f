#include "vec_scalar.h"
// The algorithms speak the vocabulary above, so it comes first.
#include "cpu/algorithms/table.h"

namespace secateur::cpu {

extern const Kernels kernels_scalar = make_table("scalar");

}  // namespace secateur::cpu
