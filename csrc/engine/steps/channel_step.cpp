#include "channel_step.h"

#include <algorithm>

namespace secateur::engine {

std::vector<int32_t> window_taps(const Window& w, const Layout& x) {
  constexpr int64_t kMost = INT32_MAX / static_cast<int64_t>(sizeof(float));  // as bytes they must fit 32 bits too
  std::vector<int32_t> taps;
  for (int64_t i = 0; i < w.kernel[0]; ++i)
    for (int64_t j = 0; j < w.kernel[1]; ++j) {
      const int64_t at = ((i * w.dilation[0] - w.padding[0]) * x.pitch() + j * w.dilation[1] - w.padding[1]) * kLanes;
      if (at > kMost || at < -kMost) throw Unplannable("engine: the image is too large for a window's offsets");
      taps.push_back(static_cast<int32_t>(at));
    }
  return taps;
}

std::pair<float, std::vector<float>> window_factors(const AvgPoolAttributes& pool, const Layout& x, const Layout& y) {
  const Window& w = pool.window;
  auto extent = [&](int64_t at, int64_t size, int i) {
    int64_t begin = at * w.stride[i] - w.padding[i], end = std::min(begin + w.kernel[i], size + w.padding[i]);
    if (!pool.count_include_pad) begin = std::max<int64_t>(begin, 0), end = std::min(end, size);
    return end - begin;
  };
  const CellGrid& b = y.cells;
  const float factor = 1.0f / static_cast<float>(pool.divisor > 0 ? pool.divisor : w.kernel[0] * w.kernel[1]);
  if (pool.divisor > 0) return {factor, {}};
  std::vector<float> scale(static_cast<size_t>(b.vectors() * kLanes), factor);
  bool same = true;
  for_each_lane(b, [&](int64_t r, int64_t c, int64_t lane, int64_t row, int64_t column) {
    if (row >= y.height || column >= y.width) return;
    const int64_t n = extent(row, x.height, 0) * extent(column, x.width, 1);
    same = same && n == w.kernel[0] * w.kernel[1];
    scale[(r * b.columns + c) * kLanes + lane] = 1.0f / static_cast<float>(n);
  });
  if (same) scale.clear();
  return {factor, scale};
}

}  // namespace secateur::engine
