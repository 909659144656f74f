#include <algorithm>

#include "block_weights.h"

namespace secateur::engine {
namespace {

// Calls f(quad, tap, four blocks) for one output quad's squares with a nonzero, quads ascending. A square of which a
// block comes as two is two squares.
class Squares {
 public:
  Squares(const ByteWeights& w, const BlockShape& shape) : w_(w), shape_(shape), whole_(shape) {
    whole_.pairs = false;
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
      for (int j = 0; j < 4 && shape_.pairs; ++j) {
        if (cpu::fits_pairs(blocks[j])) continue;
        const auto halves = cpu::halves_of(blocks[j]);
        blocks[j] = halves.half;
        rest[j] = halves.rest;
      }
      const auto quad = static_cast<int64_t>(i / 4) / shape_.taps, tap = static_cast<int64_t>(i / 4) % shape_.taps;
      for (uint32_t* square : {blocks, rest})
        if (square[0] | square[1] | square[2] | square[3]) f(quad, tap, square);
      std::fill_n(blocks, 4, 0);
    }
  }

 private:
  const ByteWeights& w_;
  const BlockShape& shape_;
  BlockShape whole_;
  std::vector<uint32_t> memory_, places_;  // places: [quad][tap][4]
};

}  // namespace

bool squares_exist(const ByteWeights& w, const BlockShape& shape) {
  for (int64_t k = 0; k < w.neurons(); ++k)
    if (shape.first_quad(w, k) != shape.first_quad(w, k / 4 * 4)) return false;
  return true;
}

int64_t count_squares(const ByteWeights& w, const BlockShape& shape) {
  Squares squares(w, shape);
  int64_t n = 0;
  for (int64_t q = 0; q < whole_quads(w.neurons()); ++q) squares.for_each(q, [&](int64_t, int64_t, uint32_t*) { ++n; });
  return n;
}

SquareStream square_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                           int64_t chunk, int64_t chunks, int64_t plane, const std::vector<int64_t>& tap_offset,
                           int64_t lowest) {
  SquareStream s;
  const int64_t quads = whole_quads(w.neurons());
  Squares squares(w, shape);
  std::vector<uint32_t> counts(static_cast<size_t>(quads * chunks), 0);
  size_t total = 0;
  for (int64_t q = 0; q < quads; ++q)
    squares.for_each(q, [&](int64_t quad, int64_t, uint32_t*) { ++counts[quad / chunk * quads + q], ++total; });
  s.row_at.assign(1, 0);
  std::vector<int64_t> place(static_cast<size_t>(quads * chunks), -1);
  uint32_t begin = 0;
  for (int64_t c = 0; c < chunks; ++c)
    for (size_t p = 0; p + 1 < parts.size(); ++p) {
      for (int64_t q = parts[p] / 4; q < whole_quads(parts[p + 1]); ++q) {
        const uint32_t count = counts[c * quads + q];
        if (count == 0 && c != 0 && c != chunks - 1) continue;
        place[c * quads + q] = static_cast<int64_t>(s.rows.size());
        s.rows.push_back({static_cast<int32_t>(4 * q),
                          static_cast<int32_t>(chunks == 1 ? 0 : 4 * q),
                          begin,
                          count,
                          0,
                          {},
                          (shape.first_quad(w, 4 * q) + c * chunk) * plane + lowest});
        begin += count;
      }
      s.row_at.push_back(static_cast<int64_t>(s.rows.size()));
    }
  s.offsets.assign(total, 0);
  s.weights.assign(4 * total, 0);
  std::vector<uint32_t> at(static_cast<size_t>(chunks));
  for (int64_t q = 0; q < quads; ++q) {
    for (int64_t c = 0; c < chunks; ++c)
      if (counts[c * quads + q]) at[c] = s.rows[place[c * quads + q]].begin;
    squares.for_each(q, [&](int64_t quad, int64_t tap, const uint32_t* square) {
      const int64_t c = quad / chunk;
      cpu::SquareRow& row = s.rows[place[c * quads + q]];
      for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i) row.weight_sum[j] += cpu::weight_at(square[j], i);
      s.offsets[at[c]] = static_cast<uint16_t>((quad - c * chunk) * plane + tap_offset[tap] - lowest);
      std::copy_n(square, 4, s.weights.begin() + int64_t{at[c]++} * 4);
    });
  }
  if (shape.pairs)
    for (auto& row : s.rows)
      row.twos = by_twos(s.offsets.data() + row.begin, s.weights.data() + int64_t{row.begin} * 4, row.count, 4);
  return s;
}

}  // namespace secateur::engine
