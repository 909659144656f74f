// The steps between int8 convolutions: pools, casts, float arithmetic in between, channel moves.
#pragma once

#include "engine/steps/planes_steps.h"

namespace secateur::engine {

std::unique_ptr<Step> make_int8_max_pool(const StepContext& context, std::string name, const MaxPoolAttributes& pool,
                                         int x, int y);
std::unique_ptr<Step> make_int8_avg_pool(const StepContext& context, std::string name, const AvgPoolAttributes& pool,
                                         int x, int y);
// Floats -> quads; and back.
std::unique_ptr<HaloedStep> make_int8_quantize(const StepContext& context, std::string name,
                                               const QuantizeAttributes& cast, int x, int y);
std::unique_ptr<HaloedStep> make_int8_dequantize(const StepContext& context, std::string name, int x, int y);
// A map between float and int8 values; other and rows as in make_map.
std::unique_ptr<HaloedStep> make_int8_map(const StepContext& context, std::string name, const MapAttributes& map, int x,
                                          int other, int rows, int y);
// As make_copy, byte by byte: channels of x, from channel `first` of y on.
std::unique_ptr<Step> make_int8_copy(const StepContext& context, std::string name, int x, int y, int64_t first,
                                     std::vector<int64_t> index);
// Planes -> int8 rows [N, C * H * W]; and -> rows [N, C], int8 or (quant absent) float; the value `rows`.
std::unique_ptr<Step> make_int8_flatten(const StepContext& context, std::string name, int x, int rows);
std::unique_ptr<Step> make_int8_global_pool(const StepContext& context, std::string name,
                                            const std::optional<Quant>& quant, int x, int rows);

}  // namespace secateur::engine
