// What layers of bytes, and other operations that give bytes, check of their attributes.
#pragma once

#include "kind.h"
#include "layers.h"

namespace secateur::engine {

// An average of bytes of one scale as bytes of another: stays within what rounding takes.
void check_ratio(const Adding& op, const AvgPoolAttributes& pool, const Quant& x, const Quant& y);
// Thresholds on the output's bytes.
void check_theta(const Adding& op, const std::vector<uint8_t>& theta, const std::optional<Quant>& quant,
                 int64_t channels);
// Sums cannot overflow, whatever the input; makes `end`.
void check_int8_layer(const Adding& op, Int8Layer& layer);

// Filled up to whole quads.
template <class T>
std::vector<T> padded(std::vector<T> by_channel) {
  by_channel.resize((by_channel.size() + 3) / 4 * 4, T{0});
  return by_channel;
}

}  // namespace secateur::engine
