#include "vec_avx512.h"
#include "quads_avx512.h"
// The algorithms speak the vocabularies above, so they come first.
#include "algorithms/quads_table.h"

namespace secateur::cpu {

extern const QuadKernels quads_avx512_vnni = make_quad_table("avx512 vnni");

}  // namespace secateur::cpu
