// The steps between convolutions: into planes and out of them, repacks, pooling, elementwise, channel moves.
#pragma once

#include "engine/program/layers.h"
#include "step.h"

namespace secateur::engine {

// The caller's image -> planes.
std::unique_ptr<HaloedStep> make_pack(const StepContext& context, std::string name, int input, int y);
// Planes -> the caller's output.
std::unique_ptr<Step> make_unpack(const StepContext& context, std::string name, int x, int output);
// Planes -> other cells or another fill.
std::unique_ptr<Step> make_repack(const StepContext& context, std::string name, int x, int y);
// Channel first + i of y becomes channel index[i] of x (channel i if index is empty).
std::unique_ptr<Step> make_copy(const StepContext& context, std::string name, int x, int y, int64_t first,
                                std::vector<int64_t> index);
std::unique_ptr<Step> make_max_pool(const StepContext& context, std::string name, const MaxPoolAttributes& pool, int x,
                                    int y);
std::unique_ptr<Step> make_avg_pool(const StepContext& context, std::string name, const AvgPoolAttributes& pool, int x,
                                    int y);
// other: a store, or -1. rows: a rows value that is broadcast over the pixels, or -1.
std::unique_ptr<Step> make_map(const StepContext& context, std::string name, const MapAttributes& map, int x, int other,
                               int rows, int y);
// Planes -> rows [N, C] and [N, C * H * W], the value `rows`.
std::unique_ptr<Step> make_global_pool(const StepContext& context, std::string name, int x, int rows);
std::unique_ptr<Step> make_flatten(const StepContext& context, std::string name, int x, int rows);

}  // namespace secateur::engine
