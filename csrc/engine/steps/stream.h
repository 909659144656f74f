// Weights as the sparse kernels read them: a stream of entries, row by row, in chunks of the input's planes.
//
// An entry is multiplied with one load of the input: a weight, a 1x4 block, or a 4x4 block. A row holds the entries of
// one output channel (of four, if entries are 4x4 blocks) in one chunk.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/program/weights.h"

namespace secateur::engine {

template <class Row, class Weight>
struct Stream {
  std::vector<Row> rows;          // chunk by chunk, part by part
  std::vector<int64_t> row_at;    // rows of chunk c, part p: [row_at[c * parts + p], row_at[c * parts + p + 1])
  std::vector<uint16_t> offsets;  // [entry]: vectors from the row's base
  std::vector<Weight> weights;    // [entry][kWeights]
};

// How the input's planes are cut into chunks, and offsets of planes and taps. Offsets count vectors.
struct Chunks {
  int64_t chunk, count;             // planes of a chunk except the last; number of chunks
  int64_t plane;                    // from a plane to the next
  std::vector<int64_t> tap_offset;  // of each tap, at least `lowest`
  int64_t lowest;
};

// parts: bounds of rows, from 0 to their number. Entries says what an entry is:
//   Row, Weight, kWeights        the kernel's row; an entry's weights
//   for_each(row, f)             f(plane, tap, weights) for the entries of a row, planes counted from first_plane(row)
//   row(row, chunks)             a Row without begin, count and base
//   add(Row&, weights)           adds an entry to the sums of its row
//   kKeepsEmptyRows              rows without an entry stay in every chunk; otherwise in the first, which brings the
//                                bias, and in the last, which finishes
template <class Entries>
auto pack_stream(Entries& entries, const std::vector<int64_t>& parts, const Chunks& in) {
  using Row = typename Entries::Row;
  using Weight = typename Entries::Weight;
  Stream<Row, Weight> s;
  const int64_t rows = parts.back();
  std::vector<uint32_t> counts(static_cast<size_t>(rows * in.count), 0);  // [chunk][row]
  size_t total = 0;
  for (int64_t r = 0; r < rows; ++r)
    entries.for_each(r, [&](int64_t plane, int64_t, const Weight*) { ++counts[plane / in.chunk * rows + r], ++total; });

  s.row_at.assign(1, 0);
  std::vector<int64_t> place(counts.size(), -1);  // in s.rows
  uint32_t begin = 0;
  for (int64_t c = 0; c < in.count; ++c)
    for (size_t p = 0; p + 1 < parts.size(); ++p) {
      for (int64_t r = parts[p]; r < parts[p + 1]; ++r) {
        const uint32_t count = counts[c * rows + r];
        if (count == 0 && c != 0 && c != in.count - 1 && !Entries::kKeepsEmptyRows) continue;
        place[c * rows + r] = static_cast<int64_t>(s.rows.size());
        Row& row = s.rows.emplace_back(entries.row(r, in.count));
        row.begin = begin;
        row.count = count;
        row.base = (entries.first_plane(r) + c * in.chunk) * in.plane + in.lowest;
        begin += count;
      }
      s.row_at.push_back(static_cast<int64_t>(s.rows.size()));
    }

  s.offsets.assign(total, 0);
  s.weights.assign(total * Entries::kWeights, Weight{0});
  std::vector<uint32_t> at(static_cast<size_t>(in.count));  // the next entry of this row in each chunk
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < in.count; ++c)
      if (counts[c * rows + r]) at[c] = s.rows[place[c * rows + r]].begin;
    entries.for_each(r, [&](int64_t plane, int64_t tap, const Weight* weights) {
      const int64_t c = plane / in.chunk;
      Entries::add(s.rows[place[c * rows + r]], weights);
      s.offsets[at[c]] = static_cast<uint16_t>((plane - c * in.chunk) * in.plane + in.tap_offset[tap] - in.lowest);
      std::copy_n(weights, Entries::kWeights, s.weights.begin() + int64_t{at[c]++} * Entries::kWeights);
    });
  }
  return s;
}

// Bounds of at most `parts` parts of output channels with equal numbers of nonzeros; multiples of `unit` but the last.
template <class T>
std::vector<int64_t> equal_parts(const WeightsOf<T>& w, int64_t parts, int64_t unit) {
  std::vector<int64_t> bounds{0};
  int64_t sum = 0;
  for (int64_t k = 0; k < w.neurons(); ++k) {
    w.for_each(k, [&](int64_t, T) { ++sum; });
    const auto made = static_cast<int64_t>(bounds.size());
    if ((k + 1) % unit == 0 && made < parts && sum * parts >= w.nonzeros() * made && k + 1 < w.neurons())
      bounds.push_back(k + 1);
  }
  bounds.push_back(w.neurons());
  return bounds;
}

}  // namespace secateur::engine
