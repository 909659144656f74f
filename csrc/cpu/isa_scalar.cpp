#include "vec_scalar.h"
// The algorithms use the vocabulary above, so they come last.
#include "cpu/algorithms/table.h"

namespace secateur::cpu {

extern const Kernels kernels_scalar = make_table("scalar");

}  // namespace secateur::cpu
