#include "plan.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <mutex>
#include <stdexcept>

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

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

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

// One image through the steps of a plan, with memory for all values that are no planes.
struct Plan::ExampleCall {
  Call call;
  std::vector<std::vector<float>> memory;

  ExampleCall(const Plan& plan, const std::vector<const float*>& example) {
    if (example.empty()) return;
    const auto& values = plan.program_.values();
    call.batch = 1;
    call.inputs = example;
    call.rows.assign(values.size(), nullptr);
    auto room = [&](int64_t floats) {
      memory.emplace_back(static_cast<size_t>(floats));
      return memory.back().data();
    };
    for (size_t v = 0; v < values.size(); ++v)
      if (values[v].kind == ValueKind::kRows) call.rows[v] = room(plan.features_[v]);
    const auto& inputs = plan.program_.inputs();
    for (size_t i = 0; i < inputs.size(); ++i)
      if (float* to = call.rows[inputs[i]]) std::copy_n(example[i], plan.features_[inputs[i]], to);
    for (int v : plan.program_.outputs()) {
      const auto [c, h, w] = plan.shapes_[v];
      call.outputs.push_back(values[v].kind == ValueKind::kRows ? call.rows[v] : room(c * h * w));
    }
  }
};

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
            !(random_ && random_->draws(program_, *op, sizes_, 1).below(2))) {
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

double Plan::measure(const Step& step, const Worker& worker, double limit) const {
  const Call call;
  double best = 1e30;
  const double begin = now();
  for (int i = 0; i < 5; ++i) {
    const double t = now();
    step.run_all(call, worker, 0, 1);
    const double end = now();
    if (i > 0 || end - t > limit) best = std::min(best, end - t);  // the first call warms up
    if (end - begin > limit) break;
  }
  return best;
}

void Plan::choose_planes(ConvStep& conv, const Worker& worker, double budget) const {
  double best[2] = {1e30, 1e30};
  ConvChoice choice[2];
  for (int dense = 0; dense < 2; ++dense) {
    if (dense ? !conv.dense_is_worth_trying() : !conv.sparse_is_worth_trying()) continue;
    const auto candidates = conv.candidates(dense);
    const double limit = budget / static_cast<double>(2 * candidates.size());
    const double until = now() + budget / 2;
    for (const ConvChoice& c : candidates) {
      if (now() > until && best[dense] < 1e30) break;
      conv.pack(c);
      const double t = measure(conv, worker, limit);
      // Those that the cost model prefers come first and keep their place in a tie.
      if (t < best[dense] * 0.98) best[dense] = t, choice[dense] = c;
    }
  }
  const bool dense = best[1] < best[0];
  conv.pack(choice[dense]);
  conv.set_measured(best[0] < 1e30 ? best[0] * 1e3 : 0, best[1] < 1e30 ? best[1] * 1e3 : 0,
                    best[0] >= 1e30   ? "nearly no zeros"
                    : best[1] >= 1e30 ? "zeros"
                    : dense           ? "dense measured faster"
                                      : "sparse measured faster");
}

void Plan::choose_blocks(BlockConvStep& conv, const Worker& worker, double budget, Kernels kernels) const {
  double best[2] = {1e30, 1e30};
  BlockChoice choice[2];
  const bool asked_for = kernels == Kernels::kSquares && conv.has_squares();
  const bool tried[2] = {!asked_for, asked_for || (kernels != Kernels::kBlocks && conv.squares_are_worth_trying())};
  for (int squares = 0; squares < 2; ++squares) {
    if (!tried[squares]) continue;
    const auto candidates = conv.candidates(squares);
    const double share = tried[!squares] ? budget / 2 : budget, until = now() + share;
    for (const BlockChoice& c : candidates) {
      if (now() > until && best[squares] < 1e30) break;
      conv.pack(c);
      const double t = measure(conv, worker, share / static_cast<double>(candidates.size()));
      if (t < best[squares] * 0.98) best[squares] = t, choice[squares] = c;
    }
  }
  conv.pack(choice[best[1] < best[0]]);
  conv.set_measured(best[0] < 1e30 ? best[0] * 1e3 : 0, best[1] < 1e30 ? best[1] * 1e3 : 0);
}

// The arena holds what the example brought here.
void Plan::choose_active(ActiveConvStep& conv, const Worker& worker, double budget, Kernels kernels) const {
  const double zeros = conv.input_zeros(worker.arena), planes_ms = conv.planes().report().ms;
  conv.set_measured(zeros, 0, "");
  const auto candidates = conv.candidates();
  if (candidates.empty()) return;
  if (kernels == Kernels::kActive) {
    const auto i = static_cast<size_t>(std::find(convs_.begin(), convs_.end(), &conv) - convs_.begin());
    ActiveChoice c = candidates[i % candidates.size()];
    c.most_dense = 1;
    conv.pack(c);
    conv.set_measured(zeros, 0, "asked for");
    return;
  }
  // An active nonzero costs about what a nonzero weight costs, both more than what dense layers multiply.
  const double left = conv.planes().report().kernel == "sparse" ? 1.5 * (1 - conv.op().weights->zeros()) : 0.6;
  if (kernels == Kernels::kPlanes || 1 - zeros > left || planes_ms <= 0) return;
  double best = 1e30;
  ActiveChoice choice;
  const double until = now() + budget;
  for (const ActiveChoice& c : candidates) {
    if (now() > until && best < 1e30) break;
    conv.pack(c);
    const double t = 1e3 * measure(conv, worker, budget / static_cast<double>(candidates.size()));
    if (t < best * 0.98) best = t, choice = c;
  }
  const bool pays = best < 0.95 * planes_ms;
  // Time grows with the nonzeros, from a fixed part on: where the line from 0 through this point meets the planes' time
  // lists still pay.
  choice.most_dense = std::min(1.0, (1 - zeros) * planes_ms / best);
  conv.pack(pays ? choice : ActiveChoice{});
  char why[160];
  std::snprintf(why, sizeof why, "%.0f %% zeros come in: %.2fx as fast as %s", 100 * zeros, planes_ms / best,
                conv.planes().report().kernel.c_str());
  conv.set_measured(zeros, best, why);
}

void Plan::choose(double budget, const std::vector<const float*>& example, Kernels kernels,
                  std::map<const Op*, ActiveChoice>& active) {
  const double begin = now();
  for (ActiveConvStep* conv : convs_) {
    ConvStep& planes = conv->planes();
    planes.pack(planes.candidates(!planes.sparse_is_worth_trying()).front());
    if (auto known = active.find(&conv->op()); known != active.end() && conv->fits(known->second))
      conv->pack(known->second);
  }
  for (BlockConvStep* conv : block_convs_) conv->pack(conv->likeliest());
  if (random_) return choose_at_random(budget > 0, example, kernels, active);
  const int64_t lists_at = planes_floats_;
  if (budget > 0 && !(convs_.empty() && block_convs_.empty())) {
    int64_t scratch = scratch_floats(1), form = 0;
    for (const BlockConvStep* conv : block_convs_) scratch = std::max(scratch, conv->largest_scratch());
    for (ActiveConvStep* conv : convs_) {
      scratch = std::max(scratch, conv->largest_scratch());
      if (!example.empty()) form = std::max(form, conv->largest_form());
      conv->place(lists_at);
    }
    const Buffer memory(lists_at + form + scratch);
    std::fill(memory.data(), memory.data() + lists_at + form, 0.5f);
    const Worker worker{memory.data(), memory.data() + lists_at + form};
    ExampleCall call(*this, example);
    size_t at = 0, at_blocks = 0;
    const auto share = [&] {
      const size_t left = convs_.size() - at + block_convs_.size() - at_blocks + 1;
      return std::max(budget - (now() - begin), 0.0) / static_cast<double>(left);
    };
    for (const auto& step : image_steps_) {
      const bool is_conv = at < convs_.size() && step.get() == convs_[at];
      if (at_blocks < block_convs_.size() && step.get() == block_convs_[at_blocks]) {
        ++at_blocks;
        choose_blocks(*block_convs_[at_blocks - 1], worker, share(), kernels);
      }
      if (is_conv) {
        ActiveConvStep& conv = *convs_[at++];
        const double left = share();
        conv.pack({});
        choose_planes(conv.planes(), worker, left * 2 / 3);
        if (!example.empty()) {
          choose_active(conv, worker, left / 3, kernels);
          active[&conv.op()] = conv.choice();
        }
      }
      if (!example.empty()) step->run_all(call.call, worker, 0, 1);
    }
  }
  place_lists();
}

// Kernels that a test asks for stay what they are, at other sizes too; the rest is drawn. Where an example comes, it
// goes through, so that reports know the zeros it brought.
void Plan::choose_at_random(bool zeros_wanted, const std::vector<const float*>& example, Kernels kernels,
                            std::map<const Op*, ActiveChoice>& active) {
  for (ActiveConvStep* conv : convs_) {
    Draws draws = random_->draws(program_, conv->op(), sizes_);
    ConvStep& planes = conv->planes();
    const bool dense = !planes.sparse_fits() || draws.below(2);
    planes.pack(draws.one_of(planes.all_candidates(dense)));
    planes.set_measured(0, 0, kAtRandom);
    if (active.count(&conv->op())) continue;  // was asked for
    const auto lists = conv->all_candidates();
    ActiveChoice choice;
    if (!lists.empty() && kernels != Kernels::kPlanes && (kernels == Kernels::kActive || draws.below(3) == 0)) {
      choice = draws.one_of(lists);
      // Denser images take the planes, in the middle of a batch, too.
      choice.most_dense = kernels == Kernels::kActive ? 1 : draws.one_of<double>({0.3, 0.6, 1, 1});
    }
    conv->pack(choice);
    conv->set_measured(-1, 0, conv->active() ? kAtRandom : "");
    if (kernels == Kernels::kPlanes || kernels == Kernels::kActive) active[&conv->op()] = choice;
  }
  for (BlockConvStep* conv : block_convs_) {
    Draws draws = random_->draws(program_, conv->op(), sizes_);
    const bool squares =
        conv->has_squares() && kernels != Kernels::kBlocks && (kernels == Kernels::kSquares || draws.below(2));
    conv->pack(draws.one_of(conv->all_candidates(squares)));
    conv->set_why(kAtRandom);
  }
  place_lists();
  if (!zeros_wanted || example.empty()) return;
  const Buffer memory(arena_floats_ + scratch_floats(1));
  std::fill_n(memory.data(), arena_floats_, 0.0f);
  const Worker worker{memory.data(), memory.data() + arena_floats_};
  ExampleCall call(*this, example);
  size_t at = 0;
  for (const auto& step : image_steps_) {
    if (at < convs_.size() && step.get() == convs_[at]) {
      ActiveConvStep& conv = *convs_[at++];
      conv.set_measured(conv.input_zeros(worker.arena), 0, conv.active() ? kAtRandom : "");
    }
    step->run_all(call.call, worker, 0, 1);
  }
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
