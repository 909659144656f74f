// Attribute checks of int8 layers and of other operations with int8 output.
#pragma once

#include "kind.h"
#include "layers.h"

namespace secateur::engine {

// Checks that an average of bytes, rescaled from x to y, fits the range of rounding.
void check_ratio(const Adding& op, const AvgPoolAttributes& pool, const Quant& x, const Quant& y);
// Checks the thresholds on the output's bytes.
void check_theta(const Adding& op, const std::vector<uint8_t>& theta, const std::optional<Quant>& quant,
                 int64_t channels);
// Checks that sums cannot overflow for any input. Makes the epilogue terms.
void check_int8_layer(const Adding& op, Int8Layer& layer);

// Padded to whole quads.
template <class T>
std::vector<T> padded(std::vector<T> by_channel) {
  by_channel.resize((by_channel.size() + 3) / 4 * 4, T{0});
  return by_channel;
}

}  // namespace secateur::engine
