// What convolutions over planes share whatever their arithmetic: how an image is cut into tiles, and which of many ways
// to do so are worth timing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace secateur::engine {

struct Tile {
  int64_t row, column;
  int rows, columns;
};

// Tiles of height x width vectors, smaller ones at the lower and right edge.
inline std::vector<Tile> cut_tiles(int64_t rows, int64_t columns, int64_t height, int64_t width) {
  std::vector<Tile> tiles;
  for (int64_t r = 0; r < rows; r += height)
    for (int64_t c = 0; c < columns; c += width)
      tiles.push_back(
          {r, c, static_cast<int>(std::min(height, rows - r)), static_cast<int>(std::min(width, columns - c))});
  return tiles;
}

// Predictions err, so all that are predicted to take at most 1.5 times as long as the first; the likeliest first.
template <typename Choice>
std::vector<Choice> worth_timing(std::vector<std::pair<double, Choice>> predicted, size_t most) {
  std::stable_sort(predicted.begin(), predicted.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Choice> best;
  for (const auto& [cycles, choice] : predicted) {
    if (cycles > 1.5 * predicted.front().first || best.size() >= most) break;
    best.push_back(choice);
  }
  return best;
}

}  // namespace secateur::engine
