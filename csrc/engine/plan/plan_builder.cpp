#include "plan_builder.h"

#include <algorithm>
#include <limits>

#include "planned_kind.h"

namespace secateur::engine {
namespace {

// A layout without a repack may have up to this many times the vectors.
constexpr double kWaste = 1.08;

int64_t output_size(const Window& w, bool ceil_mode, int i, int64_t size) {
  const int64_t span = size + w.padding[i] + w.padding[i + 2] - w.dilation[i] * (w.kernel[i] - 1) - 1;
  if (span < 0) return 0;
  int64_t out = span / w.stride[i] + 1;
  // The last window must begin inside the image or its left padding.
  if (ceil_mode) {
    out = (span + w.stride[i] - 1) / w.stride[i] + 1;
    if ((out - 1) * w.stride[i] >= size + w.padding[i]) --out;
  }
  return out;
}

}  // namespace

Records PlanBuilder::build() {
  count_uses();
  find_image_rows();
  while (!try_build()) {
  }
  return std::move(made_);
}

void PlanBuilder::count_uses() {
  uses_.assign(program_.values().size(), 0);
  producer_.assign(program_.values().size(), -1);
  for (size_t i = 0; i < program_.ops().size(); ++i) {
    const Op& op = program_.ops()[i];
    for (int v : op.inputs) ++uses_[v];
    producer_[op.output] = static_cast<int>(i);
  }
  for (int v : program_.outputs()) ++uses_[v];
}

// Rows operations that planes depend on run once per image. The others run once for the whole batch.
void PlanBuilder::find_image_rows() {
  const auto& ops = program_.ops();
  std::vector<bool> needed(program_.values().size(), false);
  made_.in_image.assign(ops.size(), false);
  for (size_t i = ops.size(); i-- > 0;) {
    const Op& op = ops[i];
    const bool planes = program_.values()[op.output].kind == ValueKind::kPlanes;
    if (!planes && !needed[op.output]) continue;
    made_.in_image[i] = true;
    for (int v : op.inputs) needed[v] = true;
  }
}

int PlanBuilder::new_store(int value, const CellGrid& cells, float fill) {
  Store s;
  s.channels = made_.shapes[value][0];
  s.layout.height = made_.shapes[value][1];
  s.layout.width = made_.shapes[value][2];
  s.layout.cells = cells;
  s.fill_value = fill;
  if (const auto& quant = program_.values()[value].quant) {
    s.bytes = true;
    s.scale = quant->scale;
    s.zero_point = quant->zero_point;
    values_[value].never_negative = quant->zero_point == 0;
  }
  made_.stores.push_back(s);
  values_[value].stores.push_back(static_cast<int>(made_.stores.size()) - 1);
  return values_[value].stores.back();
}

int PlanBuilder::use(int value, const CellGrid& cells, const HaloSize& halo, float fill) {
  for (int s : values_[value].stores) {
    Store& store = made_.stores[s];
    // A halo costs its writer. Where cells are small, readers that need none are better served as they are.
    if (store.layout.cells == cells && store.fill_value == fill) {
      store.layout.halo.include(halo);
      return s;
    }
  }
  const int from = first_store(value), to = new_store(value, cells, fill);
  made_.stores[to].layout.halo.include(halo);
  made_.records.push_back({RecordKind::kRepack, producer_[value], from, to});
  return to;
}

// A repack is cheaper before a 1x1 convolution that widens than after it: asks its producer to write these cells.
bool PlanBuilder::request_layout(int value, const CellGrid& cells) {
  if (uses_[value] != 1 || producer_[value] < 0 || hints_.count(value)) return false;
  if (!values_[value].may_choose_cells) return false;
  const Op& op = program_.ops()[producer_[value]];
  if (made_.shapes[op.inputs[0]][0] * 3 > made_.shapes[value][0] * 2) return false;
  hints_[value] = cells;
  return true;
}

bool PlanBuilder::try_build() {
  const auto& values = program_.values();
  made_.records.clear();
  made_.stores.clear();
  made_.features.assign(values.size(), -1);
  made_.shapes.assign(values.size(), {0, 0, 0});
  values_.assign(values.size(), {});
  size_t planes = 0;
  for (size_t i = 0; i < program_.inputs().size(); ++i) {
    const int v = program_.inputs()[i];
    if (values[v].kind == ValueKind::kRows) {
      made_.features[v] = values[v].channels;
      continue;
    }
    const auto [h, w] = sizes_[planes++];
    if (h < 1 || w < 1) unplannable("input", "an image must have at least one pixel, got ", size_of(h, w));
    if (h > INT32_MAX || w > INT32_MAX || h * w > INT32_MAX / kLanes)
      unplannable("input", "an image of ", size_of(h, w), " is too large");
    made_.shapes[v] = {values[v].channels, h, w};
    const int s = new_store(v, best_cells(h, w));
    made_.records.push_back({RecordKind::kPack, -1, -1, s, -1, -1, static_cast<int>(i)});
  }
  const size_t hints = hints_.size();
  for (size_t i = 0; i < program_.ops().size(); ++i) {
    op_ = static_cast<int>(i);
    const Op& op = program_.ops()[i];
    planned(op).place(*this, op);
    if (hints_.size() != hints) return false;
  }
  for (size_t i = 0; i < program_.outputs().size(); ++i) {
    const int v = program_.outputs()[i];
    if (values[v].kind == ValueKind::kPlanes)
      made_.records.push_back({RecordKind::kUnpack, producer_[v], first_store(v), -1, -1, -1, static_cast<int>(i)});
  }
  return true;
}

void PlanBuilder::set_features(const Op& op, int64_t features) {
  if (features > INT32_MAX) unplannable(op.name, "an output must have fewer than 2^31 features, got ", features);
  made_.features[op.output] = features;
}

std::optional<Record> PlanBuilder::place_window(const Op& op, const Windowed& windowed) {
  const int x = op.inputs[0];
  const Window& w = windowed.window;
  const auto in = made_.shapes[x];
  const int64_t height = output_size(w, windowed.ceil_mode, 0, in[1]),
                width = output_size(w, windowed.ceil_mode, 1, in[2]);
  if (height < 1 || width < 1)
    unplannable(op.name, "an image of ", size_of(in[1], in[2]), " is smaller than the kernel ",
                size_of(w.kernel[0], w.kernel[1]));
  if (height * width > INT32_MAX / kLanes)
    unplannable(op.name, "an output of ", size_of(height, width), " is too large");
  made_.shapes[op.output] = {windowed.channels, height, width};
  values_[op.output].may_choose_cells = windowed.may_choose_cells;

  // `out` is the cells of the output. The input's cells are the same times the stride.
  const CellGrid& have = cells_of(x);
  auto scaled = [&](const CellGrid& b) {
    return CellGrid{b.lane_rows, b.lane_columns, b.rows * w.stride[0], b.columns * w.stride[1]};
  };
  CellGrid out = best_cells(std::max(height, (in[1] + w.stride[0] - 1) / w.stride[0]),
                            std::max(width, (in[2] + w.stride[1] - 1) / w.stride[1]));
  // Also holds if the output is much smaller than input / stride (a valid convolution): cells must cover both.
  const bool divides = have.rows % w.stride[0] == 0 && have.columns % w.stride[1] == 0;
  const CellGrid derived{have.lane_rows, have.lane_columns, std::max<int64_t>(have.rows / w.stride[0], 1),
                         std::max<int64_t>(have.columns / w.stride[1], 1)};
  if (auto hint = hints_.find(op.output); hint != hints_.end()) out = hint->second;
  else if (divides && derived.covers(height, width) &&
           static_cast<double>(derived.vectors()) <= kWaste * static_cast<double>(out.vectors()))
    out = derived;
  const CellGrid need = scaled(out);
  if (!(need == have) && request_layout(x, need)) return {};

  HaloSize halo;
  const int64_t reach_down = (w.kernel[0] - 1) * w.dilation[0] - w.padding[0],
                reach_right = (w.kernel[1] - 1) * w.dilation[1] - w.padding[1];
  halo.top = w.padding[0];
  halo.left = w.padding[1];
  halo.bottom = std::max<int64_t>(0, (out.rows - 1) * w.stride[0] + reach_down - (need.rows - 1));
  halo.right = std::max<int64_t>(0, (out.columns - 1) * w.stride[1] + reach_right - (need.columns - 1));
  if ((halo.top + need.rows + halo.bottom) * (halo.left + need.columns + halo.right) > INT32_MAX / (kLanes * 4))
    unplannable(op.name, "padding and dilation are too large for an image of ", size_of(in[1], in[2]));
  // Zero padding is safe for a maximum if all values are >= 0. But a dilated window may miss the image altogether.
  const bool zero_will_do = values_[x].never_negative && w.dilation == std::array<int64_t, 2>{1, 1};
  float fill = 0;
  if (windowed.maximum && !zero_will_do && (!halo.empty() || !valid_lanes({in[1], in[2], need, {}}).empty()))
    fill = -std::numeric_limits<float>::infinity();

  Record r = record();
  r.x = use(x, need, halo, fill);
  if (op.inputs.size() > 1) {
    const auto other = made_.shapes[op.inputs[1]];
    if (other != made_.shapes[op.output])
      unplannable(op.name, "the residual is ", size_of(other[1], other[2]), ", the output ", size_of(height, width));
    r.other = use(op.inputs[1], out, {});
  }
  r.y = new_store(op.output, out);
  return r;
}

}  // namespace secateur::engine
