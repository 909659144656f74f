// Unpacks packed weights: every row is where the kernels and the tasks look for it, and every weight occurs once, at
// its own input.
#include <algorithm>
#include <map>

#include "engine/steps/conv/conv_step.h"
#include "engine/steps/int8/block_weights.h"
#include "testing.h"

namespace secateur::test {
namespace {

using engine::Chunks;
using engine::Stream;

struct Layer {
  int64_t k, channels, taps, groups;  // channels: of a group
  double zeros;
};
constexpr Layer kLayers[] = {
    {1, 1, 1, 1, 0.0},   {5, 3, 9, 1, 0.3},   {18, 24, 9, 1, 0.9},  {20, 130, 1, 1, 0.95}, {12, 8, 4, 3, 0.5},
    {12, 1, 9, 12, 0.2}, {33, 40, 2, 1, 1.0}, {8, 16, 25, 2, 0.97}, {7, 64, 1, 1, 0.0},
};

template <class T>
std::vector<T> some(Random& random, const Layer& layer) {
  std::bernoulli_distribution zero(layer.zeros);
  std::uniform_int_distribution<int> value(1, 127), sign(0, 1);
  std::vector<T> w(static_cast<size_t>(layer.k * layer.channels * layer.taps));
  for (T& x : w) x = zero(random) ? T{0} : static_cast<T>(sign(random) ? value(random) : -value(random));
  return w;
}

// Planes of `chunk`; taps before, at and behind an input's own place, all in places of their own.
Chunks cut(int64_t planes, int64_t chunk, int64_t taps) {
  Chunks in{chunk, (planes + chunk - 1) / chunk, 3 * taps + 5, {}, 0};
  for (int64_t t = 0; t < taps; ++t) in.tap_offset.push_back(3 * t - taps);
  in.lowest = std::min<int64_t>(0, in.tap_offset.front());
  return in;
}

// Checks the positions of a stream's rows; calls f(row, plane, tap, entry) for each entry, planes from the first.
template <class Row, class Weight, class F>
void take_apart(const Stream<Row, Weight>& s, const std::vector<int64_t>& parts, const Chunks& in, int64_t planes,
                int64_t channels_a_row, F&& f) {
  std::map<int64_t, std::pair<int64_t, int64_t>> places;  // vectors -> plane, tap
  for (int64_t p = 0; p < planes; ++p)
    for (size_t t = 0; t < in.tap_offset.size(); ++t)
      places[p * in.plane + in.tap_offset[t]] = {p, static_cast<int64_t>(t)};
  const auto n_parts = static_cast<int64_t>(parts.size()) - 1;
  check(static_cast<int64_t>(s.row_at.size()) == in.count * n_parts + 1, "streams: ", s.row_at.size(), " bounds");
  check(s.row_at.front() == 0 && s.row_at.back() == static_cast<int64_t>(s.rows.size()), "streams: rows beyond bounds");
  uint32_t begin = 0;
  for (int64_t c = 0; c < in.count; ++c)
    for (int64_t p = 0; p < n_parts; ++p) {
      int64_t last = parts[p] - channels_a_row;
      const int64_t first_row = s.row_at[c * n_parts + p], end_row = s.row_at[c * n_parts + p + 1];
      for (int64_t i = first_row; i < end_row; ++i) {
        const Row& row = s.rows[static_cast<size_t>(i)];
        check(row.begin == begin, "streams: row ", i, " begins at ", row.begin, ", not ", begin);
        begin += row.count;
        check(row.channel > last && row.channel < parts[p + 1], "streams: channel ", row.channel, " in part ", p);
        check(row.count > 0 || c == 0 || c == in.count - 1, "streams: an empty row in chunk ", c);
        if (c == 0 || c == in.count - 1)
          check(row.channel == last + channels_a_row, "streams: chunk ", c, " lacks a channel before ", row.channel);
        last = row.channel;
        for (uint32_t e = row.begin; e < row.begin + row.count; ++e) {
          const auto place = places.find(row.base + s.offsets[e]);
          check(place != places.end(), "streams: entry ", e, " is of no input");
          f(row, place->second.first, place->second.second, e);
        }
      }
      if (c == 0 || c == in.count - 1)
        check(last == parts[p + 1] - channels_a_row, "streams: chunk ", c, " ends part ", p, " at channel ", last);
    }
  check(begin == s.offsets.size(), "streams: rows hold ", begin, " of ", s.offsets.size(), " entries");
}

void test_reals(Random& random, const Layer& layer) {
  const auto dense = some<float>(random, layer);
  const engine::Weights weights(dense.data(), {layer.k, layer.channels * layer.taps});
  for (int64_t chunk = 1; chunk <= layer.channels; chunk = std::max(chunk + 1, chunk * 2))
    for (int64_t n_parts : {1, 2, 7}) {
      const auto parts = engine::equal_parts(weights, n_parts, 1);
      const Chunks in = cut(layer.channels, chunk, layer.taps);
      engine::Nonzeros nonzeros{weights, layer.taps, layer.groups};
      const auto s = engine::pack_stream(nonzeros, parts, in);
      std::vector<float> found(dense.size(), 0.0f);
      take_apart(s, parts, in, layer.channels * layer.groups, 1,
                 [&](const cpu::SparseRow& row, int64_t plane, int64_t tap, uint32_t entry) {
                   check(row.slot == row.channel, "streams: slot ", row.slot, " of channel ", row.channel);
                   const int64_t group = row.channel / (layer.k / layer.groups);
                   const int64_t c = plane - group * layer.channels;
                   check(c >= 0 && c < layer.channels, "streams: channel ", row.channel, " reads another group");
                   float& w = found[static_cast<size_t>((row.channel * layer.channels + c) * layer.taps + tap)];
                   check(w == 0 && s.weights[entry] != 0, "streams: a zero, or a weight that comes twice");
                   w = s.weights[entry];
                 });
      check(found == dense, "streams: other weights, in chunks of ", chunk);
    }
}

// Adds an entry's block to the weights that it stands for; a block may be split in two.
void add_block(std::vector<int>& found, const Layer& layer, int64_t channel, int64_t plane, int64_t tap,
               uint32_t block) {
  const int64_t first = channel / (layer.k / layer.groups) * layer.channels;
  for (int i = 0; i < 4; ++i) {
    const int w = cpu::weight_at(block, i);
    const int64_t c = 4 * plane + i - first;
    check(w == 0 || (c >= 0 && c < layer.channels), "streams: channel ", channel, " reads another group");
    if (w != 0) found[static_cast<size_t>((channel * layer.channels + c) * layer.taps + tap)] += w;
  }
}

void test_bytes(Random& random, const Layer& layer, bool needs_int16_safe_blocks) {
  const auto dense = some<int8_t>(random, layer);
  const std::vector<int> expected(dense.begin(), dense.end());
  const engine::ByteWeights weights(dense.data(), {layer.k, layer.channels * layer.taps});
  const engine::BlockShape shape{layer.taps, layer.groups, needs_int16_safe_blocks};
  const int64_t quads = shape.quads(weights), planes = engine::whole_quads(layer.channels * layer.groups);
  for (int64_t chunk = 1; chunk <= quads; chunk = std::max(chunk + 1, chunk * 2))
    for (int64_t n_parts : {1, 2, 7}) {
      const auto parts = engine::equal_parts(weights, n_parts, 4);
      auto whole = parts;
      whole.back() = engine::whole_quads(layer.k) * 4;
      for (size_t p = 0; p + 1 < whole.size(); ++p) check(whole[p] % 4 == 0, "streams: a part of broken quads");
      const Chunks in = cut(quads, chunk, layer.taps);

      const auto blocks = engine::block_stream(weights, shape, parts, in);
      std::vector<int> found(dense.size(), 0);
      std::map<const cpu::BlockRow*, int> sums;
      take_apart(blocks, whole, in, planes, 1,
                 [&](const cpu::BlockRow& row, int64_t plane, int64_t tap, uint32_t entry) {
                   check(row.slot == (in.count == 1 ? row.channel % 4 : row.channel), "streams: slot ", row.slot);
                   check(row.channel < layer.k && 2 * row.paired <= row.count, "streams: blocks of no channel");
                   for (int i = 0; i < 4; ++i) sums[&row] += cpu::weight_at(blocks.weights[entry], i);
                   add_block(found, layer, row.channel, plane, tap, blocks.weights[entry]);
                 });
      check(found == expected, "streams: other weights in blocks, in chunks of ", chunk);
      for (const auto& row : blocks.rows) check(row.weight_sum == sums[&row], "streams: weight_sum ", row.weight_sum);

      if (!engine::can_use_4x4_blocks(weights, shape)) continue;
      const auto blocks4x4 = engine::block4x4_stream(weights, shape, parts, in);
      check(blocks4x4.weights.size() == 4 * blocks4x4.offsets.size(), "streams: blocks4x4 of other than four blocks");
      std::fill(found.begin(), found.end(), 0);
      std::map<std::pair<const cpu::Block4x4Row*, int>, int> of_channel;
      take_apart(blocks4x4, whole, in, planes, 4,
                 [&](const cpu::Block4x4Row& row, int64_t plane, int64_t tap, uint32_t entry) {
                   check(row.slot == (in.count == 1 ? 0 : row.channel), "streams: slot ", row.slot);
                   check(2 * row.paired <= row.count, "streams: more paired than blocks4x4");
                   for (int j = 0; j < 4; ++j) {
                     const uint32_t block = blocks4x4.weights[4 * size_t{entry} + static_cast<size_t>(j)];
                     check(block == 0 || row.channel + j < layer.k, "streams: a block of no channel");
                     for (int i = 0; i < 4; ++i) of_channel[{&row, j}] += cpu::weight_at(block, i);
                     if (block) add_block(found, layer, row.channel + j, plane, tap, block);
                   }
                 });
      check(found == expected, "streams: other weights in blocks4x4, in chunks of ", chunk);
      for (const auto& row : blocks4x4.rows)
        for (int j = 0; j < 4; ++j)
          check(row.weight_sum[j] == of_channel[{&row, j}], "streams: weight_sum ", row.weight_sum[j]);
    }
}

}  // namespace

void test_streams(const Kernels&) {
  Random random(13);
  for (const Layer& layer : kLayers) {
    test_reals(random, layer);
    for (bool needs_int16_safe_blocks : {false, true}) test_bytes(random, layer, needs_int16_safe_blocks);
  }
}

}  // namespace secateur::test
