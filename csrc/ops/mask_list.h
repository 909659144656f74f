// The two lists of mask_apply_many_: what every device checks and finds out before it writes anything.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "common.h"

namespace secateur::ops {

struct MaskedWeight {
  Tensor weight;
  Tensor mask;  // contiguous, in logical order
  Rows rows;
  Layout layout;
};

// All pairs are looked at before the first is written: after an error every weight is as it was. Empty weights are left
// out.
inline std::vector<MaskedWeight> checked_pairs(const char* op, const std::vector<Tensor>& weights,
                                               const std::vector<Tensor>& masks) {
  check(weights.size() == masks.size(), op, ": masks must have one mask for each of the ", weights.size(),
        " weights, got ", masks.size());
  std::vector<MaskedWeight> pairs;
  pairs.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    const Argument argument("weights", static_cast<int64_t>(i));
    check(weight.is_cpu() == weights[0].is_cpu() && weight.get_device_index() == weights[0].get_device_index(), op,
          ": ", argument, " must be on the device of weights[0]");
    check_floating(op, argument, weight);
    check_writable(op, argument, weight);
    const Rows rows = rows_of(weight.sizes(), op);
    Tensor mask = checked_mask(op, masks[i], rows, weight, {"masks", static_cast<int64_t>(i)});
    if (rows.rows > 0 && rows.columns > 0) pairs.push_back({weight, std::move(mask), rows, layout_of(weight)});
  }
  return pairs;
}

// Whether two of the weights may have elements in common: the stretches of memory that they span meet. Such lists
// (the same weight twice, views of one tensor) are masked one weight after another, as a loop would.
inline bool share_memory(const std::vector<MaskedWeight>& pairs) {
  std::vector<std::pair<uintptr_t, uintptr_t>> spans;
  spans.reserve(pairs.size());
  for (const MaskedWeight& pair : pairs) {
    const Tensor& t = pair.weight;
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += t.stride(d) * (t.size(d) - 1);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
    spans.emplace_back(begin, begin + static_cast<uintptr_t>(last + 1) * t.element_size());
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i)
    if (spans[i].first < spans[i - 1].second) return true;  // no span before that reaches further, or it had met one
  return false;
}

}  // namespace secateur::ops
