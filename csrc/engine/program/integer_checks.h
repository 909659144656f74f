// What a program checks of operations on bytes; throws std::invalid_argument.
#pragma once

#include "program.h"

namespace secateur::engine {

void check_quant(const Op& op, const Quant& quant);
// An average of bytes of one scale as bytes of another: stays within what rounding takes.
void check_ratio(const Op& op, const Quant& x, const Quant& y);
// Fills theta up to whole quads.
void check_theta(Op& op, int64_t channels);
// A convolution or linear layer of bytes with input x: sums cannot overflow; fills its arrays up to whole quads.
void check_integer_layer(Op& op, const Value& x);

}  // namespace secateur::engine
