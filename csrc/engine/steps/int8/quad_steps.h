// The steps between integer convolutions: pools, casts, arithmetic on real values in between, channels moved.
#pragma once

#include "engine/steps/planes_steps.h"

namespace secateur::engine {

std::unique_ptr<Step> make_quad_pool(const Workshop& shop, const Op& op, int x, int y);
// Real values and quads, one way or the other, and a map between values of either kind; other, rows as make_map.
std::unique_ptr<FramedStep> make_quad_map(const Workshop& shop, const Op& op, int x, int other, int rows, int y);
// Channels of x, from channel `first` of y on, as make_copy: byte by byte.
std::unique_ptr<Step> make_quad_copy(const Workshop& shop, const Op& op, int x, int y, int64_t first,
                                     std::vector<int64_t> index);
// -> rows of bytes [N, C * H * W], and [N, C] of bytes or (op.quant absent) real values.
std::unique_ptr<Step> make_quad_flatten(const Workshop& shop, const Op& op, int x);
std::unique_ptr<Step> make_quad_global_pool(const Workshop& shop, const Op& op, int x);

}  // namespace secateur::engine
