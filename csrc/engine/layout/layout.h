// How an image lies in 16 lanes: a grid of blocks, one block a lane, with a frame of the neighbours' vectors around.
//
// Vector (r, c) of a plane holds pixel (r, c) of every block. A convolution's tap moves all lanes alike and its stride
// is a step of whole vectors, so a layer whose output blocks are its input blocks divided by the stride reads and
// writes aligned vectors only, whatever the kernel. What one layer's block needs of the neighbouring ones is copied
// into the frame after the block is written (see csrc/README.md for a drawing).
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/engine.h"

namespace secateur::engine {

inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kVectorBytes = 64;

// Vectors around a block, on each side.
struct FrameSize {
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  void include(const FrameSize& other);
  bool empty() const { return top == 0 && left == 0 && bottom == 0 && right == 0; }
};

// The grid and the blocks, without the frame: layers that agree in these can work on the same vectors.
struct Blocks {
  int64_t grid_rows = 1, grid_columns = 1;  // blocks, in lanes row by row: grid_rows * grid_columns <= 16
  int64_t rows = 1, columns = 1;            // vectors in a block
  bool operator==(const Blocks&) const = default;
  int64_t vectors() const { return rows * columns; }
  bool covers(int64_t height, int64_t width) const {
    return grid_rows * rows >= height && grid_columns * columns >= width;
  }
};

// Calls f(vector row, vector column, lane, image row, image column) for all lanes of a block, pixel or not.
template <class F>
void for_each_lane(const Blocks& b, F&& f) {
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t c = 0; c < b.columns; ++c)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        f(r, c, lane, lane / b.grid_columns * b.rows + r, lane % b.grid_columns * b.columns + c);
}

// The grid that covers an image with the fewest vectors; of those, the one with the squarest blocks.
Blocks best_blocks(int64_t height, int64_t width);

struct Layout {
  int64_t height = 0, width = 0;  // of the image, pixels
  Blocks blocks;
  FrameSize frame;

  int64_t pitch() const { return frame.left + blocks.columns + frame.right; }
  int64_t origin() const { return frame.top * pitch() + frame.left; }  // vectors from a plane's start to (0, 0)
  // Vectors from a channel to the next: odd, so that channels spread over all sets of the cache (256 -> 257 vectors: a
  // 3x3 layer 60 -> 78 GF/s).
  int64_t plane() const { return ((frame.top + blocks.rows + frame.bottom) * pitch()) | 1; }
  // The rows of a block follow each other without a gap.
  bool is_line() const { return frame.left == 0 && frame.right == 0; }
};

// Bit l of [r * columns + c]: lane l holds a pixel there. Empty where all lanes do, everywhere.
std::vector<uint16_t> valid_lanes(const Layout& layout);

// What fills the frame, relative to vector (0, 0).
struct FrameFill {
  std::vector<cpu::FrameCopy> copies;
  std::vector<cpu::LanePerm> perms;
};
FrameFill frame_fill(const Layout& layout);

// For each lane of each vector of the block, [rows][columns][16]: where its pixel lies in a plane of `from` (floats
// from that plane's vector (0, 0)), or -1 where there is none.
std::vector<int32_t> gather_index(const Layout& to, const Layout& from);
}  // namespace secateur::engine
