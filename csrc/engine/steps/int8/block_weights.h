// int8 weights as the kernels read them: rows of 1x4 blocks or of 4x4 blocks, in chunks of input quads.
#pragma once

#include <vector>

#include "cpu/int16_safe.h"
#include "cpu/int8.h"
#include "engine/layout/quads.h"
#include "engine/program/weights.h"
#include "engine/steps/stream.h"

namespace secateur::engine {

// The inputs of an output channel: quads and taps.
struct BlockShape {
  int64_t taps = 1, groups = 1;
  bool needs_int16_safe_blocks = false;  // copied from Int8Kernels
  int64_t group_channels(const ByteWeights& w) const { return w.per_neuron() / taps; }
  int64_t first_quad(const ByteWeights& w, int64_t neuron) const {
    return neuron / (w.neurons() / groups) * group_channels(w) / 4;
  }
  // Quads that contain a group's channels, at most.
  int64_t quads(const ByteWeights& w) const;
};

// Calls f(quad, tap, four weights) for the nonzero blocks of one output channel, quads ascending, counted from
// first_quad. If shape requires it, blocks that are not int16-safe are split in two.
template <class F>
void for_each_block(const ByteWeights& w, const BlockShape& shape, int64_t neuron, std::vector<uint32_t>& blocks,
                    F&& f) {
  const int64_t group = neuron / (w.neurons() / shape.groups), first = group * shape.group_channels(w);
  blocks.assign(static_cast<size_t>(shape.taps), 0);
  int64_t quad = -1;
  auto flush = [&] {
    for (int64_t t = 0; quad >= 0 && t < shape.taps; ++t)
      if (const uint32_t four = blocks[t]; four != 0) {
        blocks[t] = 0;
        if (!shape.needs_int16_safe_blocks || cpu::is_int16_safe(four)) {
          f(quad, t, four);
        } else {
          const auto [half, rest] = cpu::split_for_int16(four);
          f(quad, t, half), f(quad, t, rest);
        }
      }
  };
  w.for_each(neuron, [&](int64_t i, int8_t value) {
    const int64_t channel = first + i / shape.taps, q = channel / 4 - first / 4;
    if (q != quad) flush(), quad = q;
    blocks[i % shape.taps] |= uint32_t{static_cast<uint8_t>(value)} << (channel % 4 * 8);
  });
  flush();
}

// Number of blocks of all output channels.
int64_t count_blocks(const ByteWeights& w, const BlockShape& shape);

using BlockStream = Stream<cpu::BlockRow, uint32_t>;
using Block4x4Stream = Stream<cpu::Block4x4Row, uint32_t>;  // a row for each output quad; weights [4x4 block][4]

// parts: bounds of output channels, multiples of four except the last. Rows come in fours: the channels of a quad.
BlockStream block_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                         const Chunks& chunks);

// Whether the four output channels of each quad read the same input quads.
bool can_use_4x4_blocks(const ByteWeights& w, const BlockShape& shape);
int64_t count_4x4_blocks(const ByteWeights& w, const BlockShape& shape);
// As block_stream; requires can_use_4x4_blocks.
Block4x4Stream block4x4_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                               const Chunks& chunks);

// Reorders `count` entries, an offset and `blocks` blocks each, such that the first 2 * n can be paired, block by block
// (int16_safe.h); returns n. Entries move only within windows, so the order stays nearly the same.
uint32_t pair_blocks(uint16_t* offsets, uint32_t* weights, uint32_t count, int blocks);

// Pairs the blocks in all rows of a stream.
template <class Entries, class Row>
void pair_up(Stream<Row, uint32_t>& s) {
  for (Row& row : s.rows)
    row.paired = pair_blocks(s.offsets.data() + row.begin, s.weights.data() + int64_t{row.begin} * Entries::kWeights,
                             row.count, Entries::kWeights);
}

}  // namespace secateur::engine
