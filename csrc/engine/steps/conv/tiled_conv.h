// A convolution over planes, float or int8. The output is cut into tiles, the output channels into parts, and the
// input's planes into chunks that a tile reads at a time.
//
// This class chooses the ways to cut that are worth timing, and shares the work among threads. Derived classes know the
// kernels and their cost: ConvStep for floats, Int8ConvStep for int8.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/program/layers.h"
#include "engine/program/program.h"
#include "engine/steps/step.h"

namespace secateur::engine {

struct Tile {
  int64_t row, column;
  int rows, columns;
};

struct ConvChoice {
  bool dense = false;         // weights with their zeros; int8: 4x4 blocks
  int rows = 1, columns = 1;  // of a tile, vectors
  int64_t chunk = 0;          // input planes (of a group) that a tile reads at a time: channels, or quads
};

class TiledConv : public HaloedStep {
 public:
  int64_t tasks() const override;
  void run(const Call&, const Worker&, int64_t image, int64_t count, int64_t task) const override;
  void run_all(const Call&, const Worker&, int64_t image, int64_t count) const override;
  bool leaves_halo() const override { return by_tile_; }  // no task has a whole channel

  virtual bool can_serve(bool dense) const = 0;
  virtual bool is_worth_trying(bool dense) const = 0;
  // Choices worth measuring, the likeliest first; and all choices.
  std::vector<ConvChoice> candidates(bool dense) const;
  std::vector<ConvChoice> all_candidates(bool dense) const;
  virtual ConvChoice likeliest() const = 0;
  double predict(const ConvChoice& choice) const;  // rough estimate of cycles
  virtual int64_t largest_scratch() const = 0;     // floats, of any candidate

  void pack(const ConvChoice& choice);
  const ConvChoice& choice() const { return choice_; }
  // Best time of each form; 0: not measured.
  void set_measured(double sparse_ms, double dense_ms) { sparse_ms_ = sparse_ms, dense_ms_ = dense_ms; }
  // Output channels, input planes of a group, rows and columns of output vectors.
  std::vector<int64_t> size() const { return {neurons_, depth_, rows_, columns_}; }
  double ms() const { return choice_.dense ? dense_ms_ : sparse_ms_; }
  void set_why(std::string why) { why_ = std::move(why); }  // replaces the measured reason

 protected:
  struct Limits {
    double near_planes;      // vectors of a chunk that are read again from the nearest cache
    int64_t scratch_floats;  // sums between chunks stay in the second-level cache
    size_t candidates;
  };
  // The stores must outlive the step. residual may be -1. depth: planes of a group of the input.
  TiledConv(const std::string& name, const Limits& limits, const Window& window, int64_t neurons, int64_t depth,
            const std::vector<Store>& stores, int x, int y, int residual, const cpu::EngineKernels& kernels);

  struct TileCost {
    double sums;       // vectors of the tile
    double footprint;  // vectors that it reads from a plane
    double far;        // share of its loads that miss the nearest cache
    double chunks;
  };
  virtual void add_cycles(const ConvChoice& choice, const TileCost& tile, double& cycles) const = 0;
  virtual bool has_kernel(bool dense, int rows, int columns) const = 0;
  virtual std::vector<int64_t> chunk_sizes() const = 0;  // worth trying, ascending
  virtual void pack_weights() = 0;                       // sets parts_ and calls set_chunks or fit_chunks
  virtual void run_range(const Worker&, Range tiles, Range parts) const = 0;
  StepReport base_report() const;

  int step() const { return window_.stride[1] == 2 ? 1 : 0; }  // index of kernel tables
  int64_t n_parts() const { return static_cast<int64_t>(parts_.size()) - 1; }
  std::vector<int64_t> tap_offsets() const;  // vectors
  bool offsets_fit() const;                  // those of one plane fit 16 bits
  void set_chunks(int64_t chunk);
  int64_t fit_chunks();  // chunks whose offsets fit 16 bits; returns the lowest tap offset, or 0

  const Window& window_;
  const int64_t neurons_, depth_;
  const std::vector<Store>& stores_;
  const int x_, y_, residual_;
  const cpu::EngineKernels& kernels_;
  bool line_;               // the cell is one line of vectors: 1x1 kernels between stores without halos
  int64_t rows_, columns_;  // of output vectors

  ConvChoice choice_;
  bool by_tile_ = false;  // threads share the work by tiles; false: by output channels
  std::vector<Tile> tiles_;
  std::vector<int64_t> parts_;  // output channels: part i is [parts_[i], parts_[i + 1])
  int64_t chunks_ = 1;
  double sparse_ms_ = 0, dense_ms_ = 0;
  std::string why_;

 private:
  Range reach() const;  // lowest and highest tap offset, including 0
  void fill_halos(const Worker&, Range channels) const;

  const Limits limits_;
};

}  // namespace secateur::engine
