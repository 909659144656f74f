#include "plan_builder.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace secateur::engine {
namespace {

// A layout that needs no repacking may waste this much.
constexpr double kWaste = 1.08;

[[noreturn]] void refuse(const std::string& op, const std::string& what) {
  throw std::invalid_argument("engine: " + op + ": " + what);
}

int64_t checked_features(const std::string& op, int64_t features) {
  if (features > INT32_MAX) refuse(op, "an output must have fewer than 2^31 features, got " + std::to_string(features));
  return features;
}

std::string size_of(int64_t h, int64_t w) { return std::to_string(h) + "x" + std::to_string(w); }

// The values are never below 0.
bool keeps_sign(const Op& op) {
  using cpu::Act;
  const auto& a = op.activation;
  return a.act == Act::kHardsigmoid || a.act == Act::kSigmoid || (a.act == Act::kThreshold && a.hi >= 0) ||
         (a.act == Act::kClamp && a.lo >= 0 && a.hi >= 0);
}

int64_t output_size(const Op& op, int i, int64_t size) {
  const Window& w = op.window;
  const int64_t span = size + w.padding[i] + w.padding[i + 2] - w.dilation[i] * (w.kernel[i] - 1) - 1;
  if (span < 0) return 0;
  int64_t out = span / w.stride[i] + 1;
  // The last window must begin inside the image or its left padding.
  if (op.ceil_mode) {
    out = (span + w.stride[i] - 1) / w.stride[i] + 1;
    if ((out - 1) * w.stride[i] >= size + w.padding[i]) --out;
  }
  return out;
}

}  // namespace

void PlanBuilder::build() {
  count_uses();
  find_image_rows();
  while (!try_build()) {
  }
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

// Rows operations that planes depend on run image by image with them; the others run once for the whole batch.
void PlanBuilder::find_image_rows() {
  const auto& ops = program_.ops();
  std::vector<bool> needed(program_.values().size(), false);
  plan_.in_image_.assign(ops.size(), false);
  for (size_t i = ops.size(); i-- > 0;) {
    const Op& op = ops[i];
    const bool planes = program_.values()[op.output].kind == ValueKind::kPlanes;
    if (!planes && !needed[op.output]) continue;
    plan_.in_image_[i] = true;
    for (int v : op.inputs) needed[v] = true;
  }
}

int PlanBuilder::new_store(int value, const Blocks& blocks, float fill) {
  Store s;
  s.channels = plan_.shapes_[value][0];
  s.layout.height = plan_.shapes_[value][1];
  s.layout.width = plan_.shapes_[value][2];
  s.layout.blocks = blocks;
  s.fill_value = fill;
  if (const auto& quant = program_.values()[value].quant) {
    s.bytes = true;
    s.scale = quant->scale;
    s.zero_point = quant->zero_point;
    values_[value].never_negative = quant->zero_point == 0;
  }
  plan_.stores_.push_back(s);
  values_[value].stores.push_back(static_cast<int>(plan_.stores_.size()) - 1);
  return values_[value].stores.back();
}

int PlanBuilder::use(int value, const Blocks& blocks, const FrameSize& frame, float fill) {
  for (int s : values_[value].stores) {
    Store& store = plan_.stores_[s];
    // A frame costs its writer; where blocks are small, those that need none are better served as they are.
    if (store.layout.blocks == blocks && store.fill_value == fill) {
      store.layout.frame.include(frame);
      return s;
    }
  }
  const int from = first_store(value), to = new_store(value, blocks, fill);
  plan_.stores_[to].layout.frame.include(frame);
  plan_.records_.push_back({RecordKind::kRepack, producer_[value], from, to});
  return to;
}

// A repacking is cheaper before a 1x1 convolution that widens than after it: ask its producer to write these blocks.
bool PlanBuilder::hoist(int value, const Blocks& blocks) {
  if (uses_[value] != 1 || producer_[value] < 0 || hints_.count(value)) return false;
  const Op& op = program_.ops()[producer_[value]];
  if (op.kind != OpKind::kConv || op.inputs.size() > 1) return false;
  const Window& w = op.window;
  if (w.kernel != std::array<int64_t, 2>{1, 1} || w.stride != std::array<int64_t, 2>{1, 1} ||
      w.padding != std::array<int64_t, 4>{0, 0, 0, 0})
    return false;
  if (plan_.shapes_[op.inputs[0]][0] * 3 > plan_.shapes_[value][0] * 2) return false;
  hints_[value] = blocks;
  return true;
}

bool PlanBuilder::try_build() {
  const auto& values = program_.values();
  plan_.records_.clear();
  plan_.stores_.clear();
  plan_.features_.assign(values.size(), -1);
  plan_.shapes_.assign(values.size(), {0, 0, 0});
  values_.assign(values.size(), {});
  size_t planes = 0;
  for (size_t i = 0; i < program_.inputs().size(); ++i) {
    const int v = program_.inputs()[i];
    if (values[v].kind == ValueKind::kRows) {
      plan_.features_[v] = values[v].channels;
      continue;
    }
    const auto [h, w] = plan_.sizes_[planes++];
    if (h < 1 || w < 1) refuse("input", "an image must have at least one pixel, got " + size_of(h, w));
    if (h > INT32_MAX || w > INT32_MAX || h * w > INT32_MAX / kLanes)
      refuse("input", "an image of " + size_of(h, w) + " is too large");
    plan_.shapes_[v] = {values[v].channels, h, w};
    const int s = new_store(v, best_blocks(h, w));
    plan_.records_.push_back({RecordKind::kPack, -1, -1, s, -1, -1, static_cast<int>(i)});
  }
  const size_t hints = hints_.size();
  for (size_t i = 0; i < program_.ops().size(); ++i) {
    add_op(static_cast<int>(i));
    if (hints_.size() != hints) return false;
  }
  for (size_t i = 0; i < program_.outputs().size(); ++i) {
    const int v = program_.outputs()[i];
    if (values[v].kind == ValueKind::kPlanes)
      plan_.records_.push_back({RecordKind::kUnpack, producer_[v], first_store(v), -1, -1, -1, static_cast<int>(i)});
  }
  return true;
}

void PlanBuilder::add_op(int index) {
  const Op& op = program_.ops()[index];
  const int x = op.inputs[0];
  const auto& values = program_.values();
  const auto shape = plan_.shapes_[x];
  switch (op.kind) {
    case OpKind::kConv:
    case OpKind::kMaxPool:
    case OpKind::kAvgPool: add_window_op(index); return;
    case OpKind::kConcat: add_concat(index); return;
    case OpKind::kLinear:
      if (plan_.features_[x] != op.per_neuron())
        refuse(op.name, "expects " + std::to_string(op.per_neuron()) + " features, got " +
                            std::to_string(plan_.features_[x]) + " (the image size decides)");
      plan_.features_[op.output] = op.neurons();
      plan_.records_.push_back({RecordKind::kOp, index});
      return;
    case OpKind::kGlobalPool:
      // Sums of bytes in 32 bits.
      if (values[x].quant && shape[1] * shape[2] > INT32_MAX / 256)
        refuse(op.name, "an image of " + size_of(shape[1], shape[2]) + " is too large for an average of bytes");
      plan_.features_[op.output] = shape[0];
      plan_.records_.push_back({RecordKind::kOp, index, first_store(x)});
      return;
    case OpKind::kFlatten:
      plan_.features_[op.output] = checked_features(op.name, shape[0] * shape[1] * shape[2]);
      plan_.records_.push_back({RecordKind::kOp, index, first_store(x)});
      return;
    case OpKind::kSelect: {
      plan_.shapes_[op.output] = {static_cast<int64_t>(op.index.size()), shape[1], shape[2]};
      const int y = new_store(op.output, blocks_of(x));
      if (!values[op.output].quant) values_[op.output].never_negative = values_[x].never_negative;
      plan_.records_.push_back({RecordKind::kOp, index, first_store(x), y});
      return;
    }
    case OpKind::kQuantize:
    case OpKind::kDequantize:
    case OpKind::kMap: {
      const int other = op.inputs.size() > 1 ? op.inputs[1] : -1;
      if (values[x].kind == ValueKind::kRows) {
        plan_.features_[op.output] = plan_.features_[x];
        if (other >= 0 && plan_.features_[other] != plan_.features_[x])
          refuse(op.name, "x has " + std::to_string(plan_.features_[x]) + " features, other has " +
                              std::to_string(plan_.features_[other]));
        plan_.records_.push_back({RecordKind::kOp, index});
        return;
      }
      plan_.shapes_[op.output] = shape;
      Record r{RecordKind::kOp, index};
      if (other >= 0 && values[other].kind == ValueKind::kRows) {
        if (plan_.features_[other] != shape[0])
          refuse(op.name, "x has " + std::to_string(shape[0]) + " channels, other has " +
                              std::to_string(plan_.features_[other]));
        r.rows = other;
      } else if (other >= 0) {
        if (plan_.shapes_[other] != shape)
          refuse(op.name, "x is " + size_of(shape[1], shape[2]) + ", other is " +
                              size_of(plan_.shapes_[other][1], plan_.shapes_[other][2]));
        r.other = use(other, blocks_of(x), {});
      }
      r.x = first_store(x);
      r.y = new_store(op.output, blocks_of(x));
      if (!values[op.output].quant)
        values_[op.output].never_negative = op.kind == OpKind::kDequantize ? values_[x].never_negative : keeps_sign(op);
      plan_.records_.push_back(r);
      return;
    }
  }
}

void PlanBuilder::add_window_op(int index) {
  const Op& op = program_.ops()[index];
  const int x = op.inputs[0];
  const Window& w = op.window;
  const auto& values = program_.values();
  const auto in = plan_.shapes_[x];
  const int64_t height = output_size(op, 0, in[1]), width = output_size(op, 1, in[2]);
  if (height < 1 || width < 1)
    refuse(op.name,
           "an image of " + size_of(in[1], in[2]) + " is smaller than the kernel " + size_of(w.kernel[0], w.kernel[1]));
  if (height * width > INT32_MAX / kLanes) refuse(op.name, "an output of " + size_of(height, width) + " is too large");
  const bool conv = op.kind == OpKind::kConv;
  plan_.shapes_[op.output] = {conv ? op.neurons() : in[0], height, width};

  // The blocks of the output; those of the input are the same times the stride.
  const Blocks& have = blocks_of(x);
  auto scaled = [&](const Blocks& b) {
    return Blocks{b.grid_rows, b.grid_columns, b.rows * w.stride[0], b.columns * w.stride[1]};
  };
  Blocks out = best_blocks(std::max(height, (in[1] + w.stride[0] - 1) / w.stride[0]),
                           std::max(width, (in[2] + w.stride[1] - 1) / w.stride[1]));
  // An output much smaller than input / stride (a valid convolution) does not change this: blocks must cover both.
  const bool divides = have.rows % w.stride[0] == 0 && have.columns % w.stride[1] == 0;
  const Blocks derived{have.grid_rows, have.grid_columns, std::max<int64_t>(have.rows / w.stride[0], 1),
                       std::max<int64_t>(have.columns / w.stride[1], 1)};
  if (auto hint = hints_.find(op.output); hint != hints_.end()) out = hint->second;
  else if (divides && derived.covers(height, width) &&
           static_cast<double>(derived.vectors()) <= kWaste * static_cast<double>(out.vectors()))
    out = derived;
  const Blocks need = scaled(out);
  if (!(need == have) && hoist(x, need)) return;

  FrameSize frame;
  const int64_t reach_down = (w.kernel[0] - 1) * w.dilation[0] - w.padding[0],
                reach_right = (w.kernel[1] - 1) * w.dilation[1] - w.padding[1];
  frame.top = w.padding[0];
  frame.left = w.padding[1];
  frame.bottom = std::max<int64_t>(0, (out.rows - 1) * w.stride[0] + reach_down - (need.rows - 1));
  frame.right = std::max<int64_t>(0, (out.columns - 1) * w.stride[1] + reach_right - (need.columns - 1));
  if ((frame.top + need.rows + frame.bottom) * (frame.left + need.columns + frame.right) > INT32_MAX / (kLanes * 4))
    refuse(op.name, "padding and dilation are too large for an image of " + size_of(in[1], in[2]));
  // 0 beyond the image wins over no value that is at least 0; but a dilated window may miss the image altogether.
  const bool zero_will_do = values_[x].never_negative && w.dilation == std::array<int64_t, 2>{1, 1};
  float fill = 0;
  if (op.kind == OpKind::kMaxPool && !zero_will_do &&
      (!frame.empty() || !valid_lanes({in[1], in[2], need, {}}).empty()))
    fill = -std::numeric_limits<float>::infinity();

  Record r{RecordKind::kOp, index};
  r.x = use(x, need, frame, fill);
  if (conv && op.inputs.size() > 1) {
    if (plan_.shapes_[op.inputs[1]] != plan_.shapes_[op.output])
      refuse(op.name, "the residual is " + size_of(plan_.shapes_[op.inputs[1]][1], plan_.shapes_[op.inputs[1]][2]) +
                          ", the output " + size_of(height, width));
    r.other = use(op.inputs[1], out, {});
  }
  r.y = new_store(op.output, out);
  if (!values[op.output].quant)
    values_[op.output].never_negative = conv ? keeps_sign(op) : values_[x].never_negative && op.divisor >= 0;
  plan_.records_.push_back(r);
}

// Producers write into their part of the whole where nothing else stands against it; the others are copied.
void PlanBuilder::add_concat(int index) {
  const Op& op = program_.ops()[index];
  const auto& values = program_.values();
  if (values[op.output].kind == ValueKind::kRows) {
    plan_.features_[op.output] = 0;
    for (int v : op.inputs)
      plan_.features_[op.output] = checked_features(op.name, plan_.features_[op.output] + plan_.features_[v]);
    plan_.records_.push_back({RecordKind::kOp, index});
    return;
  }
  const auto first = plan_.shapes_[op.inputs[0]];
  plan_.shapes_[op.output] = {0, first[1], first[2]};
  bool never_negative = true;
  for (int v : op.inputs) {
    const auto shape = plan_.shapes_[v];
    if (shape[1] != first[1] || shape[2] != first[2])
      refuse(op.name,
             "images of " + size_of(first[1], first[2]) + " and " + size_of(shape[1], shape[2]) + " cannot be joined");
    plan_.shapes_[op.output][0] += shape[0];
    never_negative = never_negative && values_[v].never_negative;
  }
  // The blocks that most channels lie in.
  Blocks blocks = blocks_of(op.inputs[0]);
  int64_t most = 0;
  for (int v : op.inputs) {
    int64_t channels = 0;
    for (int u : op.inputs)
      if (blocks_of(u) == blocks_of(v)) channels += plan_.shapes_[u][0];
    if (channels > most) most = channels, blocks = blocks_of(v);
  }
  const int y = new_store(op.output, blocks);
  if (!values[op.output].quant) values_[op.output].never_negative = never_negative;
  int64_t channel = 0;
  for (int v : op.inputs) {
    const int s = first_store(v);
    Store& store = plan_.stores_[s];
    const bool is_input = producer_[v] < 0;
    // Bytes stand in quads: what does not begin with one is moved byte by byte, and what does not end with one if
    // something follows.
    const bool whole = !store.bytes || (channel % 4 == 0 && (store.channels % 4 == 0 || v == op.inputs.back()));
    if (store.layout.blocks == blocks && store.parent < 0 && !is_input && whole) {
      store.parent = y;
      store.first_channel = channel;
    } else {
      const int from = use(v, blocks, {});
      plan_.records_.push_back({RecordKind::kCopy, index, from, y, -1, -1, -1, channel});
    }
    channel += plan_.shapes_[v][0];
  }
  // A concat that only gathers what stands in place already has no record of its own, but for its place in time.
  plan_.records_.push_back({RecordKind::kOp, index, y, y});
}

}  // namespace secateur::engine
