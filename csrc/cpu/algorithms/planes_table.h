// Fills the engine's part of a kernel table.
#pragma once

#include "active.h"
#include "planes_dense.h"
#include "planes_linear.h"
#include "planes_moves.h"
#include "planes_rows.h"
#include "planes_sparse.h"

namespace secateur::cpu {
namespace {

constexpr EngineKernels make_engine_table() {
  EngineKernels table{
      .max_sums = max_sums,
      .sparse_planes = {},
      .dense_planes = {},
      .pool_row = pool_row,
      .map_row = map_row,
      .halo = copy_halo,
      .gather = gather,
      .interleave = interleave,
      .deinterleave = deinterleave,
      .lane_sums = lane_sums,
      .sparse_vector = sparse_vector,
      .active = make_active_table(),
  };
  fill_sparse_tiles<kTileRows, kTileColumns>(table);
  fill_dense_tiles<kTileRows, kTileColumns>(table);
  return table;
}

}  // namespace
}  // namespace secateur::cpu
