#include "sparse_layer.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>

namespace secateur {
namespace {

constexpr size_t kPlansKept = 4;
// Inputs to a chunk of a batched linear layer: 4 vectors of batch each, they stay in the first-level cache.
constexpr int64_t kLinearChunk = 128;

struct Registry {
  // Not a shared_mutex: glibc has the thread id that locked it unlock it, and in a forked child that is another one.
  std::mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<const SparseLayer>> layers;
  int64_t next = 1;
};
// Never destroyed: a layer may be released while the interpreter shuts down.
Registry& registry() {
  static Registry* const one = new Registry;
  return *one;
}

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

int64_t hold_layer(std::shared_ptr<const SparseLayer> layer) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  r.layers.emplace(r.next, std::move(layer));
  return r.next++;
}

void release_layer(int64_t id) {
  std::shared_ptr<const SparseLayer> last;  // destroyed after the lock is gone
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  auto found = r.layers.find(id);
  if (found == r.layers.end()) return;
  last = std::move(found->second);
  r.layers.erase(found);
}

std::shared_ptr<const SparseLayer> find_layer(int64_t id) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  auto found = r.layers.find(id);
  return found == r.layers.end() ? nullptr : found->second;
}

void lock_layers() {
  Registry& r = registry();
  r.mutex.lock();
  for (const auto& [id, layer] : r.layers) layer->mutex().lock();
}

void unlock_layers() {
  Registry& r = registry();
  for (const auto& [id, layer] : r.layers) layer->mutex().unlock();
  r.mutex.unlock();
}

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
  return hold_layer(std::make_shared<const SparseLayer>(std::move(weight), conv));
}

}  // namespace secateur
