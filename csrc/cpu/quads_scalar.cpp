#include "vec_scalar.h"
// Words for quads come after those for floats.
#include "quads_scalar.h"
// The algorithms speak the vocabularies above, so they come first.
#include "cpu/algorithms/quads_table.h"

namespace secateur::cpu {

extern const QuadKernels quads_scalar = make_quad_table("scalar");

}  // namespace secateur::cpu
