#include "vec_neon.h"
// int8 words come after those for floats.
#include "int8_neon.h"
// The algorithms use the vocabularies above, so they come last.
#include "cpu/algorithms/int8_table.h"

namespace secateur::cpu {

extern const Int8Kernels int8_neon = make_int8_table("neon");

}  // namespace secateur::cpu
