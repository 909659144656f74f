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

// The stretch of memory that a weight spans, as addresses.
struct Span {
  uintptr_t begin, end;
};
inline Span span_of(const Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += t.stride(d) * (t.size(d) - 1);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  return {begin, begin + static_cast<uintptr_t>(last + 1) * t.element_size()};
}

// The pairs in rounds, to be masked one after another: within a round no two weights span the same memory, so threads
// do not write back what others have zeroed. One round, but for the same weight twice, views of one tensor, and such.
inline std::vector<std::vector<MaskedWeight>> in_rounds(std::vector<MaskedWeight> pairs) {
  std::vector<Span> spans;
  spans.reserve(pairs.size());
  for (const MaskedWeight& pair : pairs) spans.push_back(span_of(pair.weight));
  std::vector<Span> sorted = spans;
  std::sort(sorted.begin(), sorted.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  bool apart = true;
  for (size_t i = 1; i < sorted.size(); ++i) apart &= sorted[i].begin >= sorted[i - 1].end;
  std::vector<std::vector<MaskedWeight>> rounds(1);
  if (apart) {
    rounds[0] = std::move(pairs);
    return rounds;
  }
  std::vector<size_t> round_of(pairs.size(), 0);
  for (size_t i = 0; i < pairs.size(); ++i) {
    for (size_t j = 0; j < i; ++j)
      if (spans[i].begin < spans[j].end && spans[j].begin < spans[i].end)
        round_of[i] = std::max(round_of[i], round_of[j] + 1);
    if (round_of[i] == rounds.size()) rounds.emplace_back();
    rounds[round_of[i]].push_back(std::move(pairs[i]));
  }
  return rounds;
}

}  // namespace secateur::ops
