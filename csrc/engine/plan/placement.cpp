// Places the values of an image in its arena.
#include <algorithm>
#include <utility>

#include "engine/program/refuse.h"
#include "plan.h"

namespace secateur::engine {
namespace {

constexpr int64_t kMostVectors = INT32_MAX / (kLanes * 4);  // of a plane: its bytes are counted in 32 bits
constexpr int64_t kMostFloats = int64_t{1} << 40;           // of a value: more than any memory; sums fit 63 bits

}  // namespace

// Stores with overlapping lifetimes get separate memory, others may share it. The largest are placed first.
void Plan::place_stores(const std::vector<Record>& records) {
  auto root = [&](int s) {
    while (stores_[s].parent >= 0) s = stores_[s].parent;
    return s;
  };
  for (size_t s = 0; s < stores_.size(); ++s)
    stores_[root(static_cast<int>(s))].layout.halo.include(stores_[s].layout.halo);
  // Each reader asks for a halo that is not too large, but their union may be.
  for (const Store& s : stores_) {
    const Layout& l = s.layout;
    const __int128 vectors = __int128{l.halo.top + l.cells.rows + l.halo.bottom} * l.pitch();
    if (vectors > kMostVectors || vectors * kLanes * s.planes() > kMostFloats)
      unplannable("plan", s.channels, " channels of ", size_of(l.height, l.width),
                  ", with what padding and dilation need around them, are too large");
  }
  for (size_t s = 0; s < stores_.size(); ++s) stores_[s].layout.halo = stores_[root(static_cast<int>(s))].layout.halo;
  for (size_t i = 0; i < records.size(); ++i)
    for (int s : {records[i].x, records[i].y, records[i].other})
      if (s >= 0) {
        Store& r = stores_[root(s)];
        r.begin = std::min(r.begin, static_cast<int64_t>(i));
        r.end = std::max(r.end, static_cast<int64_t>(i));
      }
  std::vector<int> order;
  for (size_t s = 0; s < stores_.size(); ++s)
    if (stores_[s].parent < 0) order.push_back(static_cast<int>(s));
  auto size = [&](int s) { return stores_[s].planes() * stores_[s].plane_floats(); };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return size(a) > size(b); });
  std::vector<std::pair<int, int64_t>> placed;  // (store, first float)
  for (int s : order) {
    int64_t at = 0;
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (auto [other, first] : placed)
      if (stores_[other].begin <= stores_[s].end && stores_[s].begin <= stores_[other].end)
        taken.emplace_back(first, first + size(other));
    std::sort(taken.begin(), taken.end());
    for (auto [first, last] : taken) {
      if (at + size(s) <= first) break;
      at = std::max(at, last);
    }
    placed.emplace_back(s, at);
    stores_[s].offset = at + stores_[s].layout.origin() * kLanes;
    arena_floats_ = std::max(arena_floats_, at + size(s));
  }
  for (size_t s = 0; s < stores_.size(); ++s) {
    Store& store = stores_[s];
    int64_t channel = 0;
    for (int p = static_cast<int>(s); stores_[p].parent >= 0; p = stores_[p].parent)
      channel += stores_[p].first_channel;
    store.offset =
        stores_[root(static_cast<int>(s))].offset + (store.bytes ? channel / 4 : channel) * store.plane_floats();
    store.valid = valid_lanes(store.layout);
    if (store.fill_value == 0.0f) store.fill = halo_fill(store.layout);
  }
}

// Lists follow the planes. A list lives from the step that writes it (the layer before, if it can) to its reader.
void Plan::place_lists() {
  for (FloatConvStep* conv : convs_) conv->unlink();
  std::vector<std::array<int64_t, 4>> placed;  // first and last step, first and last float
  for (size_t i = 0; i < convs_.size(); ++i) {
    FloatConvStep& conv = *convs_[i];
    if (!conv.active()) continue;
    auto begin = static_cast<int64_t>(i);
    for (size_t j = 0; j < i; ++j)
      if (convs_[j]->can_feed(conv)) convs_[j]->feed(conv), begin = static_cast<int64_t>(j);
    int64_t at = planes_floats_;
    const int64_t end = static_cast<int64_t>(i), size = conv.form_floats();
    std::sort(placed.begin(), placed.end(), [](const auto& a, const auto& b) { return a[2] < b[2]; });
    for (const auto& [first, last, low, high] : placed)
      if (first <= end && begin <= last && low < at + size) at = std::max(at, high);
    placed.push_back({begin, end, at, at + size});
    conv.place(at);
    arena_floats_ = std::max(arena_floats_, at + size);
  }
}

}  // namespace secateur::engine
