// The whole row of a kind: its part for programs (program/kind.h) and its part for plans.
#pragma once

#include "engine/program/program.h"

namespace secateur::engine {

class PlanBuilder;
class StepMaker;
struct Record;

struct PlannedKind : Kind {
  // Sets the output shape of the operation for an image size, and adds its record.
  void (*place)(PlanBuilder& builder, const Op& op);
  // Makes the steps of that record.
  void (*make)(StepMaker& steps, const Op& op, const Record& record);
};

// Valid for every kind: all are rows of the table in kinds/.
inline const PlannedKind& planned(const Op& op) { return static_cast<const PlannedKind&>(*op.kind); }

// Makes the row of a kind with these attributes.
template <class A, Value (*check)(const Adding&, A&), void (*place)(PlanBuilder&, const Op&, const A&),
          void (*make)(StepMaker&, const Op&, const A&, const Record&)>
PlannedKind kind_of(const char* name, size_t most_inputs = 1) {
  PlannedKind kind;
  kind.name = name;
  kind.most_inputs = most_inputs;
  kind.attributes = [] { return std::unique_ptr<Attributes>(new A); };
  kind.check = [](const Adding& op, Attributes& a) { return check(op, dynamic_cast<A&>(a)); };
  kind.place = [](PlanBuilder& builder, const Op& op) { place(builder, op, op.as<A>()); };
  kind.make = [](StepMaker& steps, const Op& op, const Record& r) { make(steps, op, op.as<A>(), r); };
  return kind;
}

}  // namespace secateur::engine
