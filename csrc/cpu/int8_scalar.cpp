#include "vec_scalar.h"
// int8 words come after those for floats.
#include "int8_scalar.h"
// The algorithms use the vocabularies above, so they come last.
#include "cpu/algorithms/int8_table.h"

namespace secateur::cpu {

extern const Int8Kernels int8_scalar = make_int8_table("scalar");

}  // namespace secateur::cpu
