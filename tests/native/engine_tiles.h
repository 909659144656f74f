// One tile of the engine, sparse or dense, with every option: where its output goes, and what must be there.
#pragma once

#include "engine_testing.h"

namespace secateur::test {

struct TileCase {
  int rows, columns, step;  // R, C, column step in vectors
  int64_t channels;         // output channels
  int chunks;
  bool bias, residual, valid;
  cpu::Act act;
  bool with_nan;
};

// Owns the output side of a TileOut and checks it against sums in double.
class TileOutput {
 public:
  TileOutput(Random& random, const TileCase& c);
  cpu::TileOut out(int chunk) const;
  double bias(int64_t k) const { return case_.bias ? bias_[k] : 0.0; }
  // sum [channels][R * C][16] without bias and residual, size: of all terms' magnitudes, terms: how many.
  void check(const std::vector<double>& sum, const std::vector<double>& size, double terms,
             const std::string& where) const;

 private:
  TileCase case_;
  int64_t y_row_, y_plane_, residual_row_, residual_plane_, valid_row_;
  Buffer<float> bias_, residual_, theta_, y_, scratch_;
  Buffer<uint16_t> valid_;
  cpu::Activation activation_;
};

std::string describe(const TileCase& c, const char* kernel);

// Runs `test` on every tile shape that exists, with every option in turn.
void for_tile_cases(bool (*exists)(const cpu::EngineKernels&, int step, int rows, int columns), const Kernels& kernels,
                    Random& random, void (*test)(const Kernels&, Random&, const TileCase&));

}  // namespace secateur::test
