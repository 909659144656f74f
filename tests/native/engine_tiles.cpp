#include "engine_tiles.h"

namespace secateur::test {

TileOutput::TileOutput(Random& random, const TileCase& c)
    : case_(c),
      y_row_((c.columns + static_cast<int64_t>(random() % 3)) * 16),
      y_plane_(c.rows * y_row_ + static_cast<int64_t>(random() % 3) * 16),
      residual_row_((c.columns + static_cast<int64_t>(random() % 3)) * 16),
      residual_plane_(c.rows * residual_row_),
      valid_row_(c.columns + static_cast<int64_t>(random() % 2)),
      bias_(normals(random, c.channels)),
      residual_(normals(random, c.residual ? c.channels * residual_plane_ : 0)),
      theta_(c.channels),
      y_(c.channels * y_plane_),
      scratch_(c.chunks > 1 ? c.channels * c.rows * c.columns * 16 : 0),
      valid_(c.valid ? c.rows * valid_row_ : 0),
      activation_(random_activation(random, c.act, theta_, c.channels)) {
  for (int64_t i = 0; c.valid && i < c.rows * valid_row_; ++i) valid_[i] = static_cast<uint16_t>(random());
}

cpu::TileOut TileOutput::out(int chunk) const {
  cpu::TileOut out{};
  out.first = chunk == 0;
  out.last = chunk == case_.chunks - 1;
  out.scratch = scratch_.data();
  out.y = y_.data();
  out.y_row = y_row_;
  out.y_plane = y_plane_;
  out.bias = case_.bias ? bias_.data() : nullptr;
  out.residual = case_.residual ? residual_.data() : nullptr;
  out.residual_row = residual_row_;
  out.residual_plane = residual_plane_;
  out.activation = activation_;
  out.valid = case_.valid ? valid_.data() : nullptr;
  out.valid_row = valid_row_;
  out.fetch = (case_.rows + case_.columns) % 2;  // hints: no result depends on them
  return out;
}

void TileOutput::check(const std::vector<double>& sum, const std::vector<double>& size, double terms,
                       const std::string& where) const {
  float untouched;
  std::memset(&untouched, 0xa5, sizeof untouched);
  for (int64_t k = 0; k < case_.channels; ++k) {
    std::vector<bool> written(y_plane_);
    for (int i = 0; i < case_.rows * case_.columns; ++i)
      for (int lane = 0; lane < 16; ++lane) {
        const int r = i / case_.columns, c = i % case_.columns;
        const int64_t at = r * y_row_ + c * 16 + lane;
        written[at] = true;
        const float got = y_[k * y_plane_ + at];
        if (case_.valid && !(valid_[r * valid_row_ + c] >> lane & 1)) {
          test::check(same_bits(got, 0.0f), where, ": a lane without a pixel holds ", got);
          continue;
        }
        const int64_t n = (k * case_.rows * case_.columns + i) * 16 + lane;
        double s = sum[n] + bias(k), all = size[n] + std::fabs(bias(k));
        if (case_.residual) {
          const double other = residual_[k * residual_plane_ + r * residual_row_ + c * 16 + lane];
          s += other;
          all += std::fabs(other);
        }
        // Each product and each sum rounds once: terms * 2^-24 of their sizes, twice where they are not fused.
        check_activated(got, activation_, k, s, 1.2e-7 * (terms + 2) * all,
                        where + ", channel " + show(k) + ", vector " + show(i) + ", lane " + show(lane));
      }
    for (int64_t i = 0; i < y_plane_; ++i)
      test::check(written[i] || same_bits(y_[k * y_plane_ + i], untouched), where, ": wrote beyond the tile");
  }
}

std::string describe(const TileCase& c, const char* kernel) {
  return std::string(kernel) + " " + show(c.rows) + "x" + show(c.columns) + " step " + show(c.step) + ", " +
         show(c.channels) + " channels, chunks " + show(c.chunks) + (c.bias ? ", bias" : "") +
         (c.residual ? ", residual" : "") + (c.valid ? ", valid" : "") + (c.with_nan ? ", NaN" : "");
}

void for_tile_cases(bool (*exists)(const cpu::EngineKernels&, int step, int rows, int columns), const Kernels& kernels,
                    Random& random, void (*test)(const Kernels&, Random&, const TileCase&)) {
  for (int step = 1; step <= 2; ++step)
    for (int rows = 1; rows <= cpu::kTileRows; ++rows)
      for (int columns = 1; columns <= cpu::kTileLine; ++columns) {
        if (!exists(kernels.engine, step, rows, columns)) continue;
        int option = 0;
        for (const cpu::Act act : all_acts) {
          const int n = option++ + rows + columns;
          test(kernels, random,
               {rows, columns, step, 1 + static_cast<int64_t>(random() % 9), n % 3 ? 1 + n % 4 : 1, n % 2 == 0,
                n % 5 < 2, n % 7 < 3, act, n % 4 == 1});
        }
        // A row of one vector reads the same whatever the step.
        if (columns == 1) test(kernels, random, {rows, 1, 3, 5, 2, true, true, true, cpu::Act::kClamp, false});
      }
}

}  // namespace secateur::test
