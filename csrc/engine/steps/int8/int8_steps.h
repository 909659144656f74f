// The steps between integer convolutions: pools, casts, arithmetic on real values in between, channels moved.
#pragma once

#include "engine/steps/planes_steps.h"

namespace secateur::engine {

std::unique_ptr<Step> make_int8_max_pool(const StepContext& context, std::string name, const MaxPoolAttributes& pool,
                                         int x, int y);
std::unique_ptr<Step> make_int8_avg_pool(const StepContext& context, std::string name, const AvgPoolAttributes& pool,
                                         int x, int y);
// Real values -> quads, and back.
std::unique_ptr<HaloedStep> make_int8_quantize(const StepContext& context, std::string name,
                                               const QuantizeAttributes& cast, int x, int y);
std::unique_ptr<HaloedStep> make_int8_dequantize(const StepContext& context, std::string name, int x, int y);
// A map between values of either kind; other, rows as make_map.
std::unique_ptr<HaloedStep> make_int8_map(const StepContext& context, std::string name, const MapAttributes& map, int x,
                                          int other, int rows, int y);
// Channels of x, from channel `first` of y on, as make_copy: byte by byte.
std::unique_ptr<Step> make_int8_copy(const StepContext& context, std::string name, int x, int y, int64_t first,
                                     std::vector<int64_t> index);
// -> rows of bytes [N, C * H * W], and [N, C] of bytes or (quant absent) real values; the value `rows`.
std::unique_ptr<Step> make_int8_flatten(const StepContext& context, std::string name, int x, int rows);
std::unique_ptr<Step> make_int8_global_pool(const StepContext& context, std::string name,
                                            const std::optional<Quant>& quant, int x, int rows);

}  // namespace secateur::engine
