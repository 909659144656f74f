#include "vec_avx512.h"
// Words for quads come after those for floats.
#include "int8_avx512.h"
// The algorithms speak the vocabularies above, so they come first.
#include "cpu/algorithms/int8_table.h"

namespace secateur::cpu {

extern const Int8Kernels int8_avx512 = make_int8_table("avx512");

}  // namespace secateur::cpu
