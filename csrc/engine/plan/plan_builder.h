// Decides in which cells every value lies, where it must be repacked, and what its halo must hold.
//
// The kinds' place functions (planned_kind.h) call it, one operation after the other: they say the size of their output
// and in which stores they read and write. What an image size makes impossible they refuse with unplannable().
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
  // What comes out: [C, H, W] of planes, F of rows.
  void set_shape(const Op& op, std::array<int64_t, 3> shape) { made_.shapes[op.output] = shape; }
  void set_features(const Op& op, int64_t features);

  Store& store(int s) { return made_.stores[s]; }
  int first_store(int v) const { return values_[v].stores.front(); }  // what the producer writes
  const CellGrid& cells_of(int v) const { return made_.stores[first_store(v)].layout.cells; }
  bool is_input(int v) const { return producer_[v] < 0; }
  // The store in which v lies in these cells, with such a halo: repacked where it does not.
  int use(int v, const CellGrid& cells, const HaloSize& halo, float fill = 0);
  int new_store(int v, const CellGrid& cells, float fill = 0);

  // Known of a value: it is never below 0, so zeros around it are as good as nothing for a maximum. Of bytes the
  // builder knows by itself.
  bool never_negative(int v) const { return values_[v].never_negative; }
  void set_never_negative(int v, bool never) {
    if (!value(v).quant) values_[v].never_negative = never;
  }

  // The operation at hand as a record; add it when its stores are known. Without stores: rows.
  Record record() const { return {RecordKind::kOp, op_}; }
  void add(const Record& record) { made_.records.push_back(record); }
  void add_copy(int from, int to, int64_t first) { add({RecordKind::kCopy, op_, from, to, -1, -1, -1, first}); }

  // An operation that slides a window over its first input: sizes, cells and halos of input and output. The record
  // has x and y; other is a second input of the output's size, if there is one.
  struct Windowed {
    const Window& window;
    int64_t channels;               // of the output
    bool ceil_mode = false;         // the last window may end beyond the image
    bool maximum = false;           // what lies beyond the image must win over nothing
    bool may_choose_cells = false;  // a pointwise operation can write whatever cells its reader wants
  };
  // Nothing: the layouts are started anew, with what has been learnt.
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
  int op_ = -1;  // at hand
  std::vector<PlanesValue> values_;
  std::vector<int> uses_, producer_;
  std::map<int, CellGrid> hints_;  // value -> cells that its producer should write
};

}  // namespace secateur::engine
