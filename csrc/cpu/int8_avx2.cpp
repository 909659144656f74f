#include "vec_avx2.h"
// int8 words come after those for floats.
#include "int8_avx2.h"
// The algorithms use the vocabularies above, so they come last.
#include "cpu/algorithms/int8_table.h"

namespace secateur::cpu {

extern const Int8Kernels int8_avx2 = make_int8_table("avx2");

}  // namespace secateur::cpu
