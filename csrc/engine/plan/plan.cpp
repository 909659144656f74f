#include "plan.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>

#include "clock.h"
#include "engine/layout/memory.h"
#include "engine/steps/int8/depthwise_step.h"
#include "engine/steps/int8/quad_steps.h"
#include "engine/steps/int8/rows_bytes.h"
#include "engine/steps/planes_steps.h"
#include "engine/steps/rows_steps.h"
#include "plan_builder.h"

namespace secateur::engine {
namespace {

constexpr int64_t kMostVectors = INT32_MAX / (kLanes * 4);  // of a plane: its bytes are counted in 32 bits
constexpr int64_t kMostFloats = int64_t{1} << 40;           // of a value: more than there is; sums stay within 63 bits

// The frame of a step whose tasks are parts of planes: after all of them, channel by channel. On one thread the step
// writes it itself.
class FrameStep : public Step {
 public:
  FrameStep(const FramedStep& of, const Store& y, const cpu::EngineKernels& kernels)
      : Step(of.name() + " (frame)"), of_(of), y_(y), kernels_(kernels) {}
  int64_t tasks() const override {
    return of_.leaves_frame() && !y_.fill.copies.empty() ? std::clamp<int64_t>(y_.planes() / 8, 1, 2) : 0;
  }
  void run(const Call&, const Worker& worker, int64_t, int64_t, int64_t task) const override {
    const Range r = part(y_.planes(), task, tasks());
    y_.fill_frames(kernels_, worker.arena, r.begin, r.end);
  }
  void run_all(const Call&, const Worker&, int64_t, int64_t) const override {}
  StepReport report() const override {
    StepReport r;
    r.name = name();
    r.kind = "frame";
    return r;
  }

 private:
  const FramedStep& of_;
  const Store& y_;
  const cpu::EngineKernels& kernels_;
};

// Vectors that one core multiplies and adds in a millisecond, each loaded from the nearest cache: the ceiling of the
// sparse kernels, measured once for each instruction set.
double load_bound_rate(const cpu::EngineKernels& k) {
  static std::mutex mutex;
  static std::map<const cpu::EngineKernels*, double> known;
  const std::lock_guard lock(mutex);
  double& rate = known[&k];
  if (rate > 0) return rate;
  constexpr uint32_t kTaps = 4096;
  int columns = 1;
  while (columns < 8 && k.sparse_planes[0][1][columns + 1]) ++columns;
  const std::vector<uint16_t> offsets(kTaps, 0);
  const std::vector<float> weights(kTaps, 0.0f);
  const cpu::SparseRow row{0, 0, 0, kTaps, 0};
  const Buffer memory(2 * cpu::kTileLine * kLanes);
  std::fill_n(memory.data(), cpu::kTileLine * kLanes, 0.0f);
  cpu::SparsePlanes args{&row, 1, offsets.data(), weights.data(), memory.data(), 0, {}};
  args.out.first = args.out.last = true;
  args.out.y = memory.data() + cpu::kTileLine * kLanes;
  double best = 1e30;
  for (int i = 0; i < 50; ++i) {
    const double begin = now();
    k.sparse_planes[0][1][columns](args);
    best = std::min(best, now() - begin);
  }
  return rate = static_cast<double>(kTaps) * columns / (best * 1e3);
}

}  // namespace

Plan::Plan(const Program& program, std::vector<std::array<int64_t, 2>> sizes, const cpu::EngineKernels& kernels,
           const cpu::QuadKernels& quads, Kernels asked_for)
    : program_(program), kernels_(kernels), quads_(quads), sizes_(std::move(sizes)) {
  PlanBuilder(*this).build();
  place_stores();
  planes_floats_ = arena_floats_ = (arena_floats_ + kLanes - 1) / kLanes * kLanes;
  make_steps(asked_for);
}

// Stores whose times overlap lie side by side, others on top of each other; the largest find their places first.
void Plan::place_stores() {
  auto root = [&](int s) {
    while (stores_[s].parent >= 0) s = stores_[s].parent;
    return s;
  };
  for (size_t s = 0; s < stores_.size(); ++s)
    stores_[root(static_cast<int>(s))].layout.frame.include(stores_[s].layout.frame);
  // Readers each ask for a frame that is not too large; together they may.
  for (const Store& s : stores_) {
    const Layout& l = s.layout;
    const __int128 vectors = __int128{l.frame.top + l.blocks.rows + l.frame.bottom} * l.pitch();
    if (vectors > kMostVectors || vectors * kLanes * s.planes() > kMostFloats)
      throw std::invalid_argument("engine: plan: " + std::to_string(s.channels) + " channels of " +
                                  std::to_string(l.height) + "x" + std::to_string(l.width) +
                                  ", with what padding and dilation need around them, are too large");
  }
  for (size_t s = 0; s < stores_.size(); ++s) stores_[s].layout.frame = stores_[root(static_cast<int>(s))].layout.frame;
  for (size_t i = 0; i < records_.size(); ++i)
    for (int s : {records_[i].x, records_[i].y, records_[i].other})
      if (s >= 0) {
        Store& r = stores_[root(s)];
        r.begin = std::min(r.begin, static_cast<int64_t>(i));
        r.end = std::max(r.end, static_cast<int64_t>(i));
      }
  std::vector<int> order;
  for (size_t s = 0; s < stores_.size(); ++s)
    if (stores_[s].parent < 0) order.push_back(static_cast<int>(s));
  auto size = [&](int s) { return stores_[s].planes() * stores_[s].plane_floats(); };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return size(a) > size(b); });
  std::vector<std::pair<int, int64_t>> placed;  // (store, first float)
  for (int s : order) {
    int64_t at = 0;
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (auto [other, first] : placed)
      if (stores_[other].begin <= stores_[s].end && stores_[s].begin <= stores_[other].end)
        taken.emplace_back(first, first + size(other));
    std::sort(taken.begin(), taken.end());
    for (auto [first, last] : taken) {
      if (at + size(s) <= first) break;
      at = std::max(at, last);
    }
    placed.emplace_back(s, at);
    stores_[s].offset = at + stores_[s].layout.origin() * kLanes;
    arena_floats_ = std::max(arena_floats_, at + size(s));
  }
  for (size_t s = 0; s < stores_.size(); ++s) {
    Store& store = stores_[s];
    int64_t channel = 0;
    for (int p = static_cast<int>(s); stores_[p].parent >= 0; p = stores_[p].parent)
      channel += stores_[p].first_channel;
    store.offset =
        stores_[root(static_cast<int>(s))].offset + (store.bytes ? channel / 4 : channel) * store.plane_floats();
    store.valid = valid_lanes(store.layout);
    if (store.fill_value == 0.0f) store.fill = frame_fill(store.layout);
  }
}

void Plan::make_steps(Kernels asked_for) {
  const Workshop shop{stores_, kernels_, quads_};
  const auto& ops = program_.ops();
  const bool any_kernel = asked_for != Kernels::kBlocks && asked_for != Kernels::kSquares;
  const auto add_framed = [&](std::unique_ptr<FramedStep> step, int y) {
    auto frame = std::make_unique<FrameStep>(*step, stores_[y], kernels_);
    image_steps_.push_back(std::move(step));
    image_steps_.push_back(std::move(frame));
  };
  for (const Record& r : records_) {
    const Op* op = r.op >= 0 ? &ops[r.op] : nullptr;
    const std::string name = op ? op->name : "input";
    switch (r.kind) {
      case RecordKind::kPack: add_framed(make_pack(shop, "input", r.port, r.y), r.y); continue;
      case RecordKind::kUnpack: image_steps_.push_back(make_unpack(shop, name, r.x, r.port)); continue;
      case RecordKind::kRepack: image_steps_.push_back(make_repack(shop, name, r.x, r.y)); continue;
      case RecordKind::kCopy:
        image_steps_.push_back(stores_[r.y].bytes ? make_quad_copy(shop, *op, r.x, r.y, r.first, {})
                                                  : make_copy(shop, name, r.x, r.y, r.first, {}));
        continue;
      case RecordKind::kOp: break;
    }
    const bool planes = program_.values()[op->output].kind == ValueKind::kPlanes;
    const bool from_planes = program_.values()[op->inputs[0]].kind == ValueKind::kPlanes;
    const bool from_bytes = program_.values()[op->inputs[0]].quant.has_value();
    Steps& steps = planes || from_planes || in_image_[r.op] ? image_steps_ : batch_steps_;
    switch (op->kind) {
      case OpKind::kConv: {
        if (any_kernel && r.other < 0 && fits_depthwise(*op, quads_) &&
            !(random_ && random_->draws(op->name, {op->neurons(), stores_[r.x].layout.height}).below(2))) {
          image_steps_.push_back(make_quad_depthwise(shop, *op, r.x, r.y, random_ ? kAtRandom : ""));
          break;
        }
        if (op->bytes) {
          auto conv = std::make_unique<BlockConvStep>(*op, stores_, r.x, r.y, r.other, kernels_, quads_);
          block_convs_.push_back(conv.get());
          add_framed(std::move(conv), r.y);
          break;
        }
        auto conv = std::make_unique<ActiveConvStep>(*op, stores_, r.x, r.y, r.other, kernels_);
        convs_.push_back(conv.get());
        image_steps_.push_back(std::make_unique<ActiveListStep>(*conv));
        add_framed(std::move(conv), r.y);
        break;
      }
      case OpKind::kLinear:
        steps.push_back(op->bytes ? make_block_linear(*op, kernels_, quads_) : make_linear(*op, kernels_));
        break;
      case OpKind::kMaxPool:
      case OpKind::kAvgPool:
        steps.push_back(from_bytes ? make_quad_pool(shop, *op, r.x, r.y) : make_pool(shop, *op, r.x, r.y));
        break;
      case OpKind::kGlobalPool:
        steps.push_back(from_bytes ? make_quad_global_pool(shop, *op, r.x) : make_global_pool(shop, *op, r.x));
        break;
      case OpKind::kQuantize:
      case OpKind::kDequantize:
        if (planes) add_framed(make_quad_map(shop, *op, r.x, -1, -1, r.y), r.y);
        else steps.push_back(make_rows_cast(*op, program_, features_[op->output]));
        break;
      case OpKind::kMap: {
        const bool any_bytes = from_bytes || op->quant || (r.other >= 0 && stores_[r.other].bytes);
        if (!planes) steps.push_back(make_rows_map(*op, features_[op->output], kernels_));
        else if (any_bytes) add_framed(make_quad_map(shop, *op, r.x, r.other, r.rows, r.y), r.y);
        else steps.push_back(make_map(shop, *op, r.x, r.other, r.rows, r.y));
        break;
      }
      case OpKind::kConcat:
        if (!planes) {
          std::vector<int64_t> features;
          for (int v : op->inputs) features.push_back(features_[v]);
          steps.push_back(make_rows_concat(*op, std::move(features)));
        }
        break;
      case OpKind::kSelect:
        steps.push_back(from_bytes ? make_quad_copy(shop, *op, r.x, r.y, 0, op->index)
                                   : make_copy(shop, op->name, r.x, r.y, 0, op->index));
        break;
      case OpKind::kFlatten:
        steps.push_back(from_bytes ? make_quad_flatten(shop, *op, r.x) : make_flatten(shop, *op, r.x));
        break;
    }
  }
}

int64_t Plan::scratch_floats(int64_t batch) const {
  int64_t n = 0;
  for (const auto& step : image_steps_) n = std::max(n, step->scratch_floats(1));
  for (const auto& step : batch_steps_) n = std::max(n, step->scratch_floats(batch));
  return n;
}

// Behind the planes. Lists live from the step that writes them, the layer before where that can, to the one that reads.
void Plan::place_lists() {
  for (ActiveConvStep* conv : convs_) conv->unlink();
  std::vector<std::array<int64_t, 4>> placed;  // first and last step, first and last float
  for (size_t i = 0; i < convs_.size(); ++i) {
    ActiveConvStep& conv = *convs_[i];
    if (!conv.active()) continue;
    auto begin = static_cast<int64_t>(i);
    for (size_t j = 0; j < i; ++j)
      if (convs_[j]->can_feed(conv)) convs_[j]->feed(conv), begin = static_cast<int64_t>(j);
    int64_t at = planes_floats_;
    const int64_t end = static_cast<int64_t>(i), size = conv.form_floats();
    std::sort(placed.begin(), placed.end(), [](const auto& a, const auto& b) { return a[2] < b[2]; });
    for (const auto& [first, last, low, high] : placed)
      if (first <= end && begin <= last && low < at + size) at = std::max(at, high);
    placed.push_back({begin, end, at, at + size});
    conv.place(at);
    arena_floats_ = std::max(arena_floats_, at + size);
  }
}

std::vector<StepReport> Plan::report() const {
  std::vector<StepReport> all;
  for (const auto& step : image_steps_) all.push_back(step->report());
  for (const auto& step : batch_steps_) all.push_back(step->report());
  const double rate = load_bound_rate(kernels_);
  for (StepReport& r : all) r.floor_ms = r.multiply_adds / rate;
  return all;
}

}  // namespace secateur::engine
