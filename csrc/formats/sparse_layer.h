// Sparse layers, validated once and registered under ids that no tensor can forge.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "planes.h"
#include "sparse_weight.h"

namespace secateur {

class SparseLayer {
 public:
  SparseLayer(SparseWeight weight, const ConvShape& conv) : weight_(std::move(weight)), conv_(conv) {}

  const SparseWeight& weight() const { return weight_; }
  const ConvShape& conv() const { return conv_; }

  // The plan for one image size, made on first use and kept (the last few).
  std::shared_ptr<const ConvPlan> plan(const char* op, int64_t height, int64_t width, int max_tile) const;

  // A linear layer's nonzeros (tap offset = input), and where each chunk of inputs ends in each neuron.
  struct Linear {
    std::vector<cpu::SparseTap> taps;
    int64_t chunks;
    std::vector<int64_t> bounds;  // [chunks + 1, K]: chunk c of neuron k is taps [bounds[c][k], bounds[c + 1][k])
  };
  const Linear& linear() const;

  std::mutex& mutex() const { return mutex_; }

 private:
  struct Cached {
    int64_t height, width;
    int max_tile;
    std::shared_ptr<const ConvPlan> plan;
  };
  SparseWeight weight_;
  ConvShape conv_;
  mutable std::mutex mutex_;
  mutable std::vector<Cached> plans_;
  mutable std::once_flag linear_once_;
  mutable Linear linear_;
};

// Ids start at 1; 0 is never an id. Thread-safe.
__attribute__((visibility("default"))) int64_t register_layer(std::shared_ptr<const SparseLayer> layer);
__attribute__((visibility("default"))) void release_layer(int64_t id);
std::shared_ptr<const SparseLayer> find_layer(int64_t id);  // null if there is none

// Around a fork (ops/fork_locks.cpp).
void lock_layers();
void unlock_layers();

// For the Python bindings: unpacks, checks and registers.
__attribute__((visibility("default"))) int64_t make_layer(const WeightShape& shape, const ConvShape& conv,
                                                          const uint8_t* mask, int64_t mask_rows, int64_t mask_bytes,
                                                          const float* values, int64_t count);

}  // namespace secateur
