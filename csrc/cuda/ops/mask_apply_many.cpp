#include "common.h"
#include "ops/mask_list.h"

namespace secateur::cuda {
namespace {

constexpr const char* kOp = "mask_apply_many_";

// A launch for each size of elements; strided weights go through contiguous copies.
void apply(const std::vector<MaskedWeight>& pairs, Queue queue) {
  std::vector<std::pair<Tensor, Tensor>> back;
  std::vector<MaskedRows> by_size[3];  // of 2, 4 and 8 bytes
  for (const MaskedWeight& pair : pairs) {
    Tensor weight = pair.weight;
    if (pair.layout == Layout::kStrided) back.emplace_back(pair.weight, weight = torch::stable::contiguous(weight));
    const int64_t size = static_cast<int64_t>(weight.element_size());
    by_size[size / 4].push_back({weight.mutable_data_ptr(), pair.mask.const_data_ptr<uint8_t>(), pair.rows.rows,
                                 pair.rows.columns, pair.layout == Layout::kChannelsLast ? weight.size(1) : 0});
  }
  for (int i = 0; i < 3; ++i)
    if (!by_size[i].empty())
      check_launch(kOp, mask_apply_many(int64_t{2} << i, by_size[i].data(), by_size[i].size(), queue));
  for (auto& [weight, masked] : back) torch::stable::copy_(weight, masked);
}

void in_place(std::vector<Tensor> weights, std::vector<Tensor> masks) {
  std::vector<MaskedWeight> pairs = checked_pairs(kOp, weights, masks);
  if (pairs.empty()) return;
  const OnDevice on(weights[0]);
  for (const auto& round : in_rounds(std::move(pairs))) apply(round, on.queue());
}

}  // namespace

SECATEUR_DEVICE_IMPL(m) { m.impl("mask_apply_many_", TORCH_BOX(&in_place)); }

}  // namespace secateur::cuda
