// Decides the cells of every value, where a value must be repacked, and what its halo must hold.
//
// The place functions of the kinds (planned_kind.h) call it, one operation after the other. They set the size of their
// output and the stores that they read and write. They call unplannable() for an impossible image size.
#pragma once

#include <map>

#include "engine/program/layers.h"
#include "engine/program/program.h"
#include "records.h"

namespace secateur::engine {

class PlanBuilder {
 public:
  PlanBuilder(const Program& program, const std::vector<std::array<int64_t, 2>>& sizes)
      : program_(program), sizes_(sizes) {}
  Records build();

  // ---- for the kinds ----

  const Value& value(int v) const { return program_.values()[v]; }
  std::array<int64_t, 3> shape(int v) const { return made_.shapes[v]; }
  int64_t features(int v) const { return made_.features[v]; }
  // Shape of the output: [C, H, W] of planes, F of rows.
  void set_shape(const Op& op, std::array<int64_t, 3> shape) { made_.shapes[op.output] = shape; }
  void set_features(const Op& op, int64_t features);

  Store& store(int s) { return made_.stores[s]; }
  int first_store(int v) const { return values_[v].stores.front(); }  // written by the producer
  const CellGrid& cells_of(int v) const { return made_.stores[first_store(v)].layout.cells; }
  bool is_input(int v) const { return producer_[v] < 0; }
  // The store of v in these cells with at least this halo. Adds a repack if there is none.
  int use(int v, const CellGrid& cells, const HaloSize& halo, float fill = 0);
  int new_store(int v, const CellGrid& cells, float fill = 0);

  // The value is never below 0, so zero padding is safe for a maximum. For bytes the builder finds this out itself.
  bool never_negative(int v) const { return values_[v].never_negative; }
  void set_never_negative(int v, bool never) {
    if (!value(v).quant) values_[v].never_negative = never;
  }

  // A record of the current operation; add it when its stores are known. Without stores: rows.
  Record record() const { return {RecordKind::kOp, op_}; }
  void add(const Record& record) { made_.records.push_back(record); }
  void add_copy(int from, int to, int64_t first) { add({RecordKind::kCopy, op_, from, to, -1, -1, -1, first}); }

  // An operation that slides a window over its first input: sizes, cells and halos of input and output. The record has
  // x and y; other is an optional second input of the output's size.
  struct Windowed {
    const Window& window;
    int64_t channels;               // of the output
    bool ceil_mode = false;         // the last window may end beyond the image
    bool maximum = false;           // lanes beyond the image must not win the maximum
    bool may_choose_cells = false;  // a pointwise operation can write any cells that its reader wants
  };
  // Returns nothing if the layouts must be built again, with a new hint.
  std::optional<Record> place_window(const Op& op, const Windowed& windowed);

 private:
  struct PlanesValue {
    std::vector<int> stores;
    bool never_negative = false;
    bool may_choose_cells = false;
  };

  bool try_build();  // false: a hint was added, start again
  void count_uses();
  void find_image_rows();
  bool request_layout(int v, const CellGrid& cells);

  const Program& program_;
  const std::vector<std::array<int64_t, 2>>& sizes_;
  Records made_;
  int op_ = -1;  // the current one
  std::vector<PlanesValue> values_;
  std::vector<int> uses_, producer_;
  std::map<int, CellGrid> hints_;  // value -> cells that its producer should write
};

}  // namespace secateur::engine
