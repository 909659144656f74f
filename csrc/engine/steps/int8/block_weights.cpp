#include "block_weights.h"

#include <algorithm>

namespace secateur::engine {

int64_t BlockShape::quads(const ByteWeights& w) const {
  const int64_t cg = group_channels(w);
  int64_t most = 1;
  for (int64_t g = 0; g < std::min<int64_t>(groups, 4); ++g)
    most = std::max(most, (g * cg + cg - 1) / 4 - g * cg / 4 + 1);
  return most;
}

int64_t count_blocks(const ByteWeights& w, const BlockShape& shape) {
  std::vector<uint32_t> memory;
  int64_t n = 0;
  for (int64_t k = 0; k < w.neurons(); ++k)
    for_each_block(w, shape, k, memory, [&](int64_t, int64_t, uint32_t) { ++n; });
  return n;
}

namespace {

// See pack_stream. Channels beyond the last pad its quad; they have no blocks.
struct Blocks {
  using Row = cpu::BlockRow;
  using Weight = uint32_t;
  static constexpr int kWeights = 1;
  static constexpr bool kKeepsEmptyRows = false;

  template <class F>
  void for_each(int64_t row, F&& f) {
    if (row < weights.neurons())
      for_each_block(weights, shape, row, memory,
                     [&](int64_t quad, int64_t tap, uint32_t four) { f(quad, tap, &four); });
  }
  int64_t first_plane(int64_t row) const { return shape.first_quad(weights, std::min(row, weights.neurons() - 1)); }
  Row row(int64_t row, int64_t chunks) const {
    return {static_cast<int32_t>(row), static_cast<int32_t>(chunks == 1 ? row % 4 : row), 0, 0, 0, 0, 0};
  }
  static void add(Row& row, const uint32_t* block) {
    for (int i = 0; i < 4; ++i) row.weight_sum += cpu::weight_at(*block, i);
  }

  const ByteWeights& weights;
  const BlockShape& shape;
  std::vector<uint32_t> memory{};
};

}  // namespace

BlockStream block_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                         const Chunks& chunks) {
  std::vector<int64_t> bounds = parts;
  bounds.back() = whole_quads(bounds.back()) * 4;
  Blocks blocks{w, shape};
  BlockStream s = pack_stream(blocks, bounds, chunks);
  if (shape.needs_int16_safe_blocks) pair_up<Blocks>(s);
  return s;
}

}  // namespace secateur::engine
