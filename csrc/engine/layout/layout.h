// Layout of an image in 16 lanes: a grid of cells, one cell a lane, with a halo of the neighbours' vectors around.
//
// Vector (r, c) of a plane holds pixel (r, c) of every cell. A convolution's tap moves all lanes alike, and its stride
// is a step of whole vectors. So a layer whose output cells are its input cells divided by the stride reads and writes
// aligned vectors only, for any kernel. The pixels that a cell needs of its neighbours are copied into the halo after
// the cell is written (csrc/README.md has a drawing).
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/engine.h"

namespace secateur::engine {

inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kVectorBytes = 64;

// Vectors around a cell, on each side.
struct HaloSize {
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  void include(const HaloSize& other);
  bool empty() const { return top == 0 && left == 0 && bottom == 0 && right == 0; }
};

// The grid and the cells, without the halo: layers with equal grids can work on the same vectors.
struct CellGrid {
  int64_t lane_rows = 1, lane_columns = 1;  // cells, in lanes row by row: lane_rows * lane_columns <= 16
  int64_t rows = 1, columns = 1;            // vectors in a cell
  bool operator==(const CellGrid&) const = default;
  int64_t vectors() const { return rows * columns; }
  bool covers(int64_t height, int64_t width) const {
    return lane_rows * rows >= height && lane_columns * columns >= width;
  }
};

// Calls f(vector row, vector column, lane, image row, image column) for all lanes of a cell, with or without a pixel.
template <class F>
void for_each_lane(const CellGrid& b, F&& f) {
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t c = 0; c < b.columns; ++c)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        f(r, c, lane, lane / b.lane_columns * b.rows + r, lane % b.lane_columns * b.columns + c);
}

// The grid that covers an image with the fewest vectors; among equals, the one with the squarest cells.
CellGrid best_cells(int64_t height, int64_t width);

struct Layout {
  int64_t height = 0, width = 0;  // of the image, pixels
  CellGrid cells;
  HaloSize halo;

  int64_t pitch() const { return halo.left + cells.columns + halo.right; }
  int64_t origin() const { return halo.top * pitch() + halo.left; }  // vectors from a plane's start to (0, 0)
  // Vectors from a channel to the next. Odd, so that channels spread over all cache sets (256 -> 257 vectors: a 3x3
  // layer 60 -> 78 GF/s).
  int64_t plane() const { return ((halo.top + cells.rows + halo.bottom) * pitch()) | 1; }
  // The rows of a cell follow each other without a gap.
  bool is_line() const { return halo.left == 0 && halo.right == 0; }
};

// Bit l of [r * columns + c]: lane l holds a pixel there. Empty if all lanes hold pixels everywhere.
std::vector<uint16_t> valid_lanes(const Layout& layout);

// Copies that fill the halo, relative to vector (0, 0).
struct HaloFill {
  std::vector<cpu::HaloCopy> copies;
  std::vector<cpu::LanePerm> perms;
};
HaloFill halo_fill(const Layout& layout);

// For each lane of each vector of the cell, [rows][columns][16]: the offset of its pixel in a plane of `from` (floats
// from that plane's vector (0, 0)), or -1 if there is none.
std::vector<int32_t> gather_index(const Layout& to, const Layout& from);
}  // namespace secateur::engine
