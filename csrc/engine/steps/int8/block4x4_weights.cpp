#include <algorithm>

#include "block_weights.h"

namespace secateur::engine {
namespace {

// Entries of an output quad; see pack_stream. A 4x4 block with a 1x4 block that is split in two becomes two 4x4 blocks.
class Blocks4x4 {
 public:
  using Row = cpu::Block4x4Row;
  using Weight = uint32_t;
  static constexpr int kWeights = 4;
  static constexpr bool kKeepsEmptyRows = false;

  Blocks4x4(const ByteWeights& w, const BlockShape& shape) : w_(w), shape_(shape), whole_(shape) {
    whole_.needs_int16_safe_blocks = false;
    places_.assign(static_cast<size_t>(shape.quads(w) * shape.taps * 4), 0);
  }
  template <class F>
  void for_each(int64_t output_quad, F&& f) {
    const int64_t first = output_quad * 4, end = std::min(first + 4, w_.neurons());
    for (int64_t o = first; o < end; ++o)
      for_each_block(w_, whole_, o, memory_, [&](int64_t quad, int64_t tap, uint32_t four) {
        places_[static_cast<size_t>((quad * shape_.taps + tap) * 4 + o - first)] = four;
      });
    for (size_t i = 0; i < places_.size(); i += 4) {
      uint32_t* const blocks = places_.data() + i;
      uint32_t rest[4] = {};
      for (int j = 0; j < 4 && shape_.needs_int16_safe_blocks; ++j) {
        if (cpu::is_int16_safe(blocks[j])) continue;
        const auto halves = cpu::split_for_int16(blocks[j]);
        blocks[j] = halves.half;
        rest[j] = halves.rest;
      }
      const auto quad = static_cast<int64_t>(i / 4) / shape_.taps, tap = static_cast<int64_t>(i / 4) % shape_.taps;
      for (const uint32_t* block4x4 : {blocks, rest})
        if (block4x4[0] | block4x4[1] | block4x4[2] | block4x4[3]) f(quad, tap, block4x4);
      std::fill_n(blocks, 4, 0);
    }
  }
  int64_t first_plane(int64_t output_quad) const { return shape_.first_quad(w_, 4 * output_quad); }
  Row row(int64_t output_quad, int64_t chunks) const {
    const auto channel = static_cast<int32_t>(4 * output_quad);
    return {channel, chunks == 1 ? 0 : channel, 0, 0, 0, {}, 0};
  }
  static void add(Row& row, const uint32_t* block4x4) {
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 4; ++i) row.weight_sum[j] += cpu::weight_at(block4x4[j], i);
  }

 private:
  const ByteWeights& w_;
  const BlockShape& shape_;
  BlockShape whole_;
  std::vector<uint32_t> memory_, places_;  // places: [quad][tap][4]
};

}  // namespace

bool can_use_4x4_blocks(const ByteWeights& w, const BlockShape& shape) {
  for (int64_t k = 0; k < w.neurons(); ++k)
    if (shape.first_quad(w, k) != shape.first_quad(w, k / 4 * 4)) return false;
  return true;
}

int64_t count_4x4_blocks(const ByteWeights& w, const BlockShape& shape) {
  Blocks4x4 blocks4x4(w, shape);
  int64_t n = 0;
  for (int64_t q = 0; q < whole_quads(w.neurons()); ++q)
    blocks4x4.for_each(q, [&](int64_t, int64_t, const uint32_t*) { ++n; });
  return n;
}

Block4x4Stream block4x4_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                               const Chunks& chunks) {
  std::vector<int64_t> bounds;
  for (int64_t k : parts) bounds.push_back(whole_quads(k));
  Blocks4x4 blocks4x4(w, shape);
  Block4x4Stream s = pack_stream(blocks4x4, bounds, chunks);
  if (shape.needs_int16_safe_blocks) pair_up<Blocks4x4>(s);
  return s;
}

}  // namespace secateur::engine
