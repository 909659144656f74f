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

std::vector<int64_t> block_parts(const ByteWeights& w, int64_t parts) {
  std::vector<int64_t> bounds{0};
  std::vector<int64_t> counts(static_cast<size_t>(w.neurons()), 0);
  for (int64_t k = 0; k < w.neurons(); ++k) w.for_each(k, [&](int64_t, int8_t) { ++counts[k]; });
  int64_t sum = 0;
  for (int64_t k = 0; k < w.neurons(); ++k) {
    sum += counts[k];
    if ((k + 1) % 4 == 0 && static_cast<int64_t>(bounds.size()) < parts &&
        sum * parts >= w.nonzeros() * static_cast<int64_t>(bounds.size()) && k + 1 < w.neurons())
      bounds.push_back(k + 1);
  }
  bounds.push_back(w.neurons());
  return bounds;
}

BlockStream block_stream(const ByteWeights& w, const BlockShape& shape, const std::vector<int64_t>& parts,
                         int64_t chunk, int64_t chunks, int64_t plane, const std::vector<int64_t>& tap_offset,
                         int64_t lowest) {
  BlockStream s;
  const int64_t k = w.neurons(), padded = whole_quads(k) * 4;
  std::vector<uint32_t> memory;
  std::vector<int64_t> counts(static_cast<size_t>(padded * chunks), 0);
  int64_t total = 0;
  for (int64_t o = 0; o < k; ++o)
    for_each_block(w, shape, o, memory,
                   [&](int64_t quad, int64_t, uint32_t) { ++counts[quad / chunk * padded + o], ++total; });
  s.row_at.assign(1, 0);
  std::vector<int64_t> place(static_cast<size_t>(padded * chunks), -1);
  for (int64_t c = 0; c < chunks; ++c)
    for (size_t p = 0; p + 1 < parts.size(); ++p) {
      const int64_t end = p + 2 == parts.size() ? padded : parts[p + 1];
      for (int64_t o = parts[p]; o < end; ++o) {
        const int64_t count = counts[c * padded + o];
        if (count == 0 && c != 0 && c != chunks - 1) continue;
        place[c * padded + o] = static_cast<int64_t>(s.rows.size());
        const int64_t first = shape.first_quad(w, std::min(o, k - 1));
        s.rows.push_back({static_cast<int32_t>(o), static_cast<int32_t>(chunks == 1 ? o % 4 : o), 0,
                          static_cast<uint32_t>(count), 0, 0, (first + c * chunk) * plane + lowest});
      }
      s.row_at.push_back(static_cast<int64_t>(s.rows.size()));
    }
  uint32_t begin = 0;
  for (auto& row : s.rows) row.begin = begin, begin += row.count;
  s.offsets.assign(static_cast<size_t>(total), 0);
  s.weights.assign(static_cast<size_t>(total), 0);
  std::vector<uint32_t> at(static_cast<size_t>(chunks));
  for (int64_t o = 0; o < k; ++o) {
    for (int64_t c = 0; c < chunks; ++c)
      if (counts[c * padded + o]) at[c] = s.rows[place[c * padded + o]].begin;
    for_each_block(w, shape, o, memory, [&](int64_t quad, int64_t tap, uint32_t four) {
      const int64_t c = quad / chunk;
      for (int i = 0; i < 4; ++i) s.rows[place[c * padded + o]].weight_sum += cpu::weight_at(four, i);
      s.offsets[at[c]] = static_cast<uint16_t>((quad - c * chunk) * plane + tap_offset[tap] - lowest);
      s.weights[at[c]++] = four;
    });
  }
  if (shape.pairs)
    for (auto& row : s.rows)
      row.twos = by_twos(s.offsets.data() + row.begin, s.weights.data() + row.begin, row.count, 1);
  return s;
}

}  // namespace secateur::engine
