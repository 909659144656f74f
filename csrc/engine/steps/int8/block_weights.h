// Signed bytes of weights as the integer kernels read them: rows of blocks, or of squares, in chunks of input quads.
#pragma once

#include <vector>

#include "cpu/quad_pairs.h"
#include "cpu/quads.h"
#include "engine/layout/quads.h"
#include "engine/program/weights.h"
#include "engine/steps/stream.h"

namespace secateur::engine {

// What the inputs of an output channel are: quads and taps.
struct BlockShape {
  int64_t taps = 1, groups = 1;
  bool pairs = false;  // the kernels', see QuadKernels
  int64_t group_channels(const ByteWeights& w) const { return w.per_neuron() / taps; }
  int64_t first_quad(const ByteWeights& w, int64_t neuron) const {
    return neuron / (w.neurons() / groups) * group_channels(w) / 4;
  }
  // Quads that a group's channels lie in, at most.
  int64_t quads(const ByteWeights& w) const;
};

// Calls f(quad, tap, four weights) for one output channel's blocks with a nonzero, quads ascending, counted from
// first_quad. Those that do not fit pairs come as two.
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
        if (!shape.pairs || cpu::fits_pairs(four)) {
          f(quad, t, four);
        } else {
          const auto [half, rest] = cpu::halves_of(four);
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
using SquareStream = Stream<cpu::SquareRow, uint32_t>;  // a row for each output quad; weights [square][4]

// parts: bounds of output channels, multiples of four but for the last. Rows come in fours: the channels of a quad.
BlockStream block_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                         const Chunks& chunks);

// Whether the four output channels of each quad read the same input quads.
bool squares_exist(const ByteWeights& w, const BlockShape& shape);
int64_t count_squares(const ByteWeights& w, const BlockShape& shape);
// As block_stream; squares must exist.
SquareStream square_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                           const Chunks& chunks);

// Reorders `count` entries, an offset and `blocks` blocks each, such that the first 2 * n fit together two by two,
// block by block (quad_pairs.h); returns n. Nearly in order still: entries move within windows.
uint32_t by_twos(uint16_t* offsets, uint32_t* weights, uint32_t count, int blocks);

// Of whole rows of a stream.
template <class Entries, class Row>
void pair_up(Stream<Row, uint32_t>& s) {
  for (Row& row : s.rows)
    row.twos = by_twos(s.offsets.data() + row.begin, s.weights.data() + int64_t{row.begin} * Entries::kWeights,
                       row.count, Entries::kWeights);
}

}  // namespace secateur::engine
