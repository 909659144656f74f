// The steps between convolutions: into planes and out of them, other blocks, pooling, elementwise, channels moved.
#pragma once

#include "engine/program/layers.h"
#include "step.h"

namespace secateur::engine {

// An image of the caller's -> planes.
std::unique_ptr<HaloedStep> make_pack(const StepContext& context, std::string name, int input, int y);
// Planes -> an output of the caller's.
std::unique_ptr<Step> make_unpack(const StepContext& context, std::string name, int x, int output);
// Planes in other blocks, or with another fill.
std::unique_ptr<Step> make_repack(const StepContext& context, std::string name, int x, int y);
// Channel i of y is channel index[i] of x (all of them, in order, where index is empty), from channel `first` of y on.
std::unique_ptr<Step> make_copy(const StepContext& context, std::string name, int x, int y, int64_t first,
                                std::vector<int64_t> index);
std::unique_ptr<Step> make_max_pool(const StepContext& context, std::string name, const MaxPoolAttributes& pool, int x,
                                    int y);
std::unique_ptr<Step> make_avg_pool(const StepContext& context, std::string name, const AvgPoolAttributes& pool, int x,
                                    int y);
// other: a store, or -1 and rows: a rows value that is broadcast over the pixels, or neither.
std::unique_ptr<Step> make_map(const StepContext& context, std::string name, const MapAttributes& map, int x, int other,
                               int rows, int y);
// Planes -> rows [N, C] and [N, C * H * W], the value `rows`.
std::unique_ptr<Step> make_global_pool(const StepContext& context, std::string name, int x, int rows);
std::unique_ptr<Step> make_flatten(const StepContext& context, std::string name, int x, int rows);

}  // namespace secateur::engine
