#include "sparse_layer.h"

#include <algorithm>
#include <stdexcept>

#include "registry.h"

namespace secateur {
namespace {

constexpr size_t kPlansKept = 4;
// Inputs per chunk of a batched linear layer: with 4 vectors of batch each they stay in the first-level cache.
constexpr int64_t kLinearChunk = 128;

using Layers = Registry<const SparseLayer>;

}  // namespace

std::shared_ptr<const ConvPlan> SparseLayer::plan(const char* op, int64_t height, int64_t width, int max_tile) const {
  std::lock_guard lock(mutex_);
  auto same = [&](const Cached& c) { return c.height == height && c.width == width && c.max_tile == max_tile; };
  auto found = std::find_if(plans_.begin(), plans_.end(), same);
  if (found == plans_.end()) {
    auto made = std::make_shared<const ConvPlan>(plan_conv(op, weight_, conv_, height, width, max_tile));
    if (plans_.size() == kPlansKept) plans_.erase(plans_.begin());
    plans_.push_back({height, width, max_tile, std::move(made)});
    return plans_.back().plan;
  }
  return found->plan;
}

const SparseLayer::Linear& SparseLayer::linear() const {
  std::call_once(linear_once_, [this] {
    const int64_t neurons = weight_.shape.neurons, inputs = weight_.shape.channels;
    linear_.taps.reserve(weight_.value.size());
    for (int64_t i = 0; i < weight_.nonzeros(); ++i)
      linear_.taps.push_back({static_cast<int32_t>(weight_.index[i]), weight_.value[i]});
    linear_.chunks = std::max<int64_t>((inputs + kLinearChunk - 1) / kLinearChunk, 1);
    linear_.bounds.assign(weight_.start.begin(), weight_.start.end() - 1);
    linear_.bounds.resize((linear_.chunks + 1) * neurons);
    for (int64_t chunk = 1; chunk <= linear_.chunks; ++chunk)
      for (int64_t k = 0; k < neurons; ++k) {
        int64_t at = linear_.bounds[(chunk - 1) * neurons + k];
        while (at < weight_.start[k + 1] && weight_.index[at] < chunk * kLinearChunk) ++at;
        linear_.bounds[chunk * neurons + k] = at;
      }
  });
  return linear_;
}

int64_t register_layer(std::shared_ptr<const SparseLayer> layer) { return Layers::instance().hold(std::move(layer)); }
void release_layer(int64_t id) { Layers::instance().release(id); }
std::shared_ptr<const SparseLayer> find_layer(int64_t id) { return Layers::instance().find(id); }
void lock_layers() { Layers::instance().lock_all(); }
void unlock_layers() { Layers::instance().unlock_all(); }

int64_t make_layer(const WeightShape& shape, const ConvShape& conv, const uint8_t* mask, int64_t mask_rows,
                   int64_t mask_bytes, const float* values, int64_t count) {
  bool good = conv.groups >= 1 && conv.groups <= INT32_MAX && shape.neurons % conv.groups == 0;
  for (int i = 0; i < 2; ++i)
    for (auto [value, least] : {std::pair{conv.stride[i], 1}, {conv.padding[i], 0}, {conv.dilation[i], 1}})
      good = good && value >= least && value <= INT32_MAX;
  if (!good)
    throw std::runtime_error(
        "sparse layer: stride, dilation and groups must be >= 1, padding >= 0 (all < 2^31), and groups must divide the "
        "neurons");
  SparseWeight weight = unpack_weight("sparse layer", shape, mask, mask_rows, mask_bytes, values, count);
  return register_layer(std::make_shared<const SparseLayer>(std::move(weight), conv));
}

}  // namespace secateur
