#include "layout.h"

#include <algorithm>
#include <map>

namespace secateur::engine {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

}  // namespace

void HaloSize::include(const HaloSize& other) {
  top = std::max(top, other.top);
  left = std::max(left, other.left);
  bottom = std::max(bottom, other.bottom);
  right = std::max(right, other.right);
}

CellGrid best_cells(int64_t height, int64_t width) {
  CellGrid best;
  int64_t best_cost = INT64_MAX;
  for (int64_t rows = 1; rows <= kLanes; ++rows)
    for (int64_t columns = 1; rows * columns <= kLanes; ++columns) {
      CellGrid b{rows, columns, std::max<int64_t>(ceil_div(height, rows), 1),
                 std::max<int64_t>(ceil_div(width, columns), 1)};
      // Prefers wide cells to tall ones, and even ones to odd ones (the next stride 2 then needs no repacking).
      const int64_t halo = 2 * (b.rows + b.columns + 2);
      const int64_t cost = b.vectors() * 4096 + halo * 16 + (b.rows % 2 + b.columns % 2) * 4 + (b.columns < b.rows);
      if (cost < best_cost) best = b, best_cost = cost;
    }
  return best;
}

std::vector<uint16_t> valid_lanes(const Layout& layout) {
  const CellGrid& b = layout.cells;
  std::vector<uint16_t> valid(static_cast<size_t>(b.vectors()), 0);
  for_each_lane(b, [&](int64_t r, int64_t c, int64_t lane, int64_t row, int64_t column) {
    if (row < layout.height && column < layout.width)
      valid[r * b.columns + c] = static_cast<uint16_t>(valid[r * b.columns + c] | 1u << lane);
  });
  if (std::all_of(valid.begin(), valid.end(), [](uint16_t bits) { return bits == 0xffff; })) valid.clear();
  return valid;
}

HaloFill halo_fill(const Layout& layout) {
  const CellGrid& b = layout.cells;
  const HaloSize& f = layout.halo;
  HaloFill fill;
  std::map<std::pair<int64_t, int64_t>, int32_t> known;  // (cells down, cells right) -> perm
  auto perm = [&](int64_t down, int64_t right) {
    auto [at, added] = known.try_emplace({down, right}, static_cast<int32_t>(fill.perms.size()));
    if (added) {
      cpu::LanePerm p;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t row = lane / b.lane_columns + down, column = lane % b.lane_columns + right;
        const bool inside = lane < b.lane_rows * b.lane_columns && row >= 0 && row < b.lane_rows && column >= 0 &&
                            column < b.lane_columns;
        p.lane[lane] = inside ? static_cast<int32_t>(row * b.lane_columns + column) : -1;
      }
      fill.perms.push_back(p);
    }
    return at->second;
  };
  for (int64_t r = -f.top; r < b.rows + f.bottom; ++r)
    for (int64_t c = -f.left; c < b.columns + f.right; ++c) {
      const int64_t down = floor_div(r, b.rows), right = floor_div(c, b.columns);
      if (down == 0 && right == 0) continue;
      const int64_t from = (r - down * b.rows) * layout.pitch() + c - right * b.columns;
      fill.copies.push_back(
          {static_cast<int32_t>(r * layout.pitch() + c), static_cast<int32_t>(from), perm(down, right)});
    }
  return fill;
}

std::vector<int32_t> gather_index(const Layout& to, const Layout& from) {
  const CellGrid& b = from.cells;
  std::vector<int32_t> index(static_cast<size_t>(to.cells.vectors() * kLanes), -1);
  size_t i = 0;
  for_each_lane(to.cells, [&](int64_t, int64_t, int64_t lane, int64_t row, int64_t column) {
    if (lane < to.cells.lane_rows * to.cells.lane_columns && row < to.height && column < to.width) {
      const int64_t from_lane = row / b.rows * b.lane_columns + column / b.columns;
      index[i] = static_cast<int32_t>((row % b.rows * from.pitch() + column % b.columns) * kLanes + from_lane);
    }
    ++i;
  });
  return index;
}

}  // namespace secateur::engine
