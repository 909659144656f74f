// concat: xs, one or more, all planes or all rows -> their channels or features one after the other.
#include "engine/steps/rows_steps.h"
#include "table.h"

namespace secateur::engine {
namespace {

Value check(const Adding& op, NoAttributes&) {
  Value made{op.x().kind, 0, op.x().quant};
  for (size_t i = 0; i < op.inputs(); ++i) {
    op.want(i, "xs", made.kind);
    const Value& x = op.input(i);
    if (x.quant != made.quant) op.refuse("xs must all be real values, or bytes of one scale");
    if (x.quant && !x.planes()) op.refuse("rows of bytes cannot be joined");
    made.channels = made.channels < 0 || x.channels < 0 ? -1 : made.channels + x.channels;
    if (made.channels > INT32_MAX) op.refuse("an output must have fewer than 2^31 channels");
  }
  return made;
}

void place_rows(PlanBuilder& builder, const Op& op) {
  int64_t features = 0;
  for (int v : op.inputs) builder.set_features(op, features += builder.features(v));
  builder.add(builder.record());
}

// The cells of most channels.
CellGrid most_common_cells(const PlanBuilder& builder, const std::vector<int>& inputs) {
  CellGrid cells = builder.cells_of(inputs[0]);
  int64_t most = 0;
  for (int v : inputs) {
    int64_t channels = 0;
    for (int u : inputs)
      if (builder.cells_of(u) == builder.cells_of(v)) channels += builder.shape(u)[0];
    if (channels > most) most = channels, cells = builder.cells_of(v);
  }
  return cells;
}

// Producers write their part of the output in place if they can; the other inputs are copied.
void place(PlanBuilder& builder, const Op& op, const NoAttributes&) {
  if (!builder.value(op.output).planes()) return place_rows(builder, op);
  const auto first = builder.shape(op.inputs[0]);
  std::array<int64_t, 3> whole{0, first[1], first[2]};
  bool never_negative = true;
  for (int v : op.inputs) {
    const auto shape = builder.shape(v);
    if (shape[1] != first[1] || shape[2] != first[2])
      unplannable(op.name, "images of ", size_of(first[1], first[2]), " and ", size_of(shape[1], shape[2]),
                  " cannot be joined");
    whole[0] += shape[0];
    never_negative = never_negative && builder.never_negative(v);
  }
  builder.set_shape(op, whole);
  const CellGrid cells = most_common_cells(builder, op.inputs);
  const int y = builder.new_store(op.output, cells);
  builder.set_never_negative(op.output, never_negative);
  int64_t channel = 0;
  for (int v : op.inputs) {
    Store& store = builder.store(builder.first_store(v));
    // Bytes lie in quads. An input is copied byte by byte if it does not begin at a quad, or does not end at one and
    // another input follows.
    const bool quads = !store.bytes || (channel % 4 == 0 && (store.channels % 4 == 0 || v == op.inputs.back()));
    if (store.layout.cells == cells && store.parent < 0 && !builder.is_input(v) && quads) {
      store.parent = y;
      store.first_channel = channel;
    } else {
      builder.add_copy(builder.use(v, cells, {}), y, channel);
    }
    channel += builder.shape(v)[0];
  }
  // No copy is needed if all inputs are in place; the empty record keeps the lifetimes of the stores right.
  Record record = builder.record();
  record.x = record.y = y;
  builder.add(record);
}

void make(StepMaker& steps, const Op& op, const NoAttributes&, const Record& r) {
  if (r.y >= 0) return;
  std::vector<int64_t> features;
  for (int v : op.inputs) features.push_back(steps.features(v));
  steps.add(make_rows_concat(op, std::move(features)));
}

}  // namespace

PlannedKind concat() { return kind_of<NoAttributes, check, place, make>("concat", SIZE_MAX); }

}  // namespace secateur::engine
