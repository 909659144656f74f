// Decides in which blocks every value lies, where it must be repacked, and what its frame must hold.
#pragma once

#include <map>

#include "plan.h"

namespace secateur::engine {

class PlanBuilder {
 public:
  explicit PlanBuilder(Plan& plan) : plan_(plan), program_(plan.program_) {}
  void build();

 private:
  struct PlanesValue {
    std::vector<int> stores;  // the first is what the producer writes
    bool never_negative = false;
  };
  using Record = Plan::Record;
  using RecordKind = Plan::RecordKind;

  bool try_build();  // false: a hint was added, start again
  void count_uses();
  void find_image_rows();
  void add_op(int index);
  void add_window_op(int index);
  void add_concat(int index);
  int new_store(int value, const Blocks& blocks, float fill = 0);
  int use(int value, const Blocks& blocks, const FrameSize& frame, float fill = 0);
  int first_store(int value) const { return values_[value].stores.front(); }
  const Blocks& blocks_of(int value) const { return plan_.stores_[first_store(value)].layout.blocks; }
  bool hoist(int value, const Blocks& blocks);

  Plan& plan_;
  const Program& program_;
  std::vector<PlanesValue> values_;
  std::vector<int> uses_, producer_;
  std::map<int, Blocks> hints_;  // value -> blocks that its producer should write
};

}  // namespace secateur::engine
