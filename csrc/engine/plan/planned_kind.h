// The whole row of a kind: what a program knows of it (program/kind.h), and how a plan is made of it.
#pragma once

#include "engine/program/kind.h"
#include "plan_builder.h"
#include "step_maker.h"

namespace secateur::engine {

struct PlannedKind : Kind {
  // For an image size: what comes out of the operation, and its record.
  void (*place)(PlanBuilder& builder, const Op& op);
  // The steps of that record.
  void (*make)(StepMaker& steps, const Op& op, const Record& record);
};

// Every kind is a row of the table in kinds/.
inline const PlannedKind& planned(const Op& op) { return static_cast<const PlannedKind&>(*op.kind); }

// The row of a kind with these attributes.
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
