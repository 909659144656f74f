#include "vec_avx2.h"
// Words for quads come after those for floats.
#include "quads_avx2.h"
// The algorithms speak the vocabularies above, so they come first.
#include "cpu/algorithms/quads_table.h"

namespace secateur::cpu {

extern const QuadKernels quads_avx2 = make_quad_table("avx2");

}  // namespace secateur::cpu
