#include "vec_neon.h"
// Words for quads come after those for floats.
#include "quads_neon.h"
// The algorithms speak the vocabularies above, so they come first.
#include "cpu/algorithms/quads_table.h"

namespace secateur::cpu {

extern const QuadKernels quads_neon_dot = make_quad_table("neon dot");

}  // namespace secateur::cpu
