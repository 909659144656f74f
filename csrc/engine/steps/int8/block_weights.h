// Signed bytes of weights as the integer kernels read them: rows of blocks, or of 4x4 blocks, in chunks of input quads.
#pragma once

#include <vector>

#include "cpu/int16_safe.h"
#include "cpu/int8.h"
#include "engine/layout/quads.h"
#include "engine/program/weights.h"
#include "engine/steps/stream.h"

namespace secateur::engine {

// What the inputs of an output channel are: quads and taps.
struct BlockShape {
  int64_t taps = 1, groups = 1;
  bool needs_int16_safe_blocks = false;  // the kernels', see Int8Kernels
  int64_t group_channels(const ByteWeights& w) const { return w.per_neuron() / taps; }
  int64_t first_quad(const ByteWeights& w, int64_t neuron) const {
    return neuron / (w.neurons() / groups) * group_channels(w) / 4;
  }
  // Quads that a group's channels lie in, at most.
  int64_t quads(const ByteWeights& w) const;
};

// Calls f(quad, tap, four weights) for one output channel's blocks with a nonzero, quads ascending, counted from
// first_quad. Those that are not int16-safe are split in two where shape says so.
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

// How many there are, in all.
int64_t count_blocks(const ByteWeights& w, const BlockShape& shape);

using BlockStream = Stream<cpu::BlockRow, uint32_t>;
using Block4x4Stream = Stream<cpu::Block4x4Row, uint32_t>;  // a row for each output quad; weights [4x4 block][4]

// parts: bounds of output channels, multiples of four but for the last. Rows come in fours: the channels of a quad.
BlockStream block_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                         const Chunks& chunks);

// Whether the four output channels of each quad read the same input quads.
bool can_use_4x4_blocks(const ByteWeights& w, const BlockShape& shape);
int64_t count_4x4_blocks(const ByteWeights& w, const BlockShape& shape);
// As block_stream; 4x4 blocks must exist.
Block4x4Stream block4x4_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                               const Chunks& chunks);

// Reorders `count` entries, an offset and `blocks` blocks each, such that the first 2 * n fit together two by two,
// block by block (int16_safe.h); returns n. Nearly in order still: entries move within windows.
uint32_t pair_blocks(uint16_t* offsets, uint32_t* weights, uint32_t count, int blocks);

// Of whole rows of a stream.
template <class Entries, class Row>
void pair_up(Stream<Row, uint32_t>& s) {
  for (Row& row : s.rows)
    row.paired = pair_blocks(s.offsets.data() + row.begin, s.weights.data() + int64_t{row.begin} * Entries::kWeights,
                             row.count, Entries::kWeights);
}

}  // namespace secateur::engine
