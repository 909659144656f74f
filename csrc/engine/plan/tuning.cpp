// Chooses kernel, tile and chunk of each convolution of a plan: measured within a budget, the likeliest candidates
// first. For tests they are drawn at random instead (random_planner.h).
#include <algorithm>
#include <cstdio>

#include "clock.h"
#include "engine/layout/memory.h"
#include "plan.h"

namespace secateur::engine {
namespace {

constexpr double kNever = 1e30;  // seconds: not measured

// One image through the steps of a plan, with memory for all rows values.
struct ExampleCall {
  Call call;
  std::vector<std::vector<float>> memory;

  ExampleCall(const Plan& plan, const std::vector<const float*>& example) {
    if (example.empty()) return;
    const auto& values = plan.program().values();
    call.batch = 1;
    call.inputs = example;
    call.rows.assign(values.size(), nullptr);
    auto room = [&](int64_t floats) {
      memory.emplace_back(static_cast<size_t>(floats));
      return memory.back().data();
    };
    for (size_t v = 0; v < values.size(); ++v)
      if (values[v].kind == ValueKind::kRows) call.rows[v] = room(plan.features(static_cast<int>(v)));
    const auto& inputs = plan.program().inputs();
    for (size_t i = 0; i < inputs.size(); ++i)
      if (float* to = call.rows[inputs[i]]) std::copy_n(example[i], plan.features(inputs[i]), to);
    for (int v : plan.program().outputs()) {
      const auto [c, h, w] = plan.shape(v);
      call.outputs.push_back(values[v].kind == ValueKind::kRows ? call.rows[v] : room(c * h * w));
    }
  }
};

double measure(const Step& step, const Worker& worker, double limit) {
  const Call call;
  double best = kNever;
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

template <class Choice>
struct Fastest {
  Choice choice{};
  double seconds = kNever;
  bool found() const { return seconds < kNever; }
  double ms() const { return found() ? seconds * 1e3 : 0; }
};

// Measures as many candidates as `seconds` allow, at least one. Those that the cost model prefers come first and win
// ties. The step stays packed as the last measured candidate.
template <class Conv, class Choice>
Fastest<Choice> fastest(Conv& conv, const std::vector<Choice>& candidates, const Worker& worker, double seconds) {
  Fastest<Choice> best;
  const double limit = seconds / static_cast<double>(candidates.size()), until = now() + seconds;
  for (const Choice& c : candidates) {
    if (now() > until && best.found()) break;
    conv.pack(c);
    const double t = measure(conv, worker, limit);
    if (t < best.seconds * 0.98) best = {c, t};
  }
  return best;
}

// Chooses sparse or dense weights, and tile and chunk. each: seconds for each form.
void choose_form(TiledConv& conv, bool try_sparse, bool try_dense, const Worker& worker, double each) {
  Fastest<ConvChoice> sparse, dense;
  if (try_sparse) sparse = fastest(conv, conv.candidates(false), worker, each);
  if (try_dense) dense = fastest(conv, conv.candidates(true), worker, each);
  conv.pack(dense.seconds < sparse.seconds ? dense.choice : sparse.choice);
  conv.set_measured(sparse.ms(), dense.ms());
}

void choose_planes(ConvStep& conv, const Worker& worker, double budget) {
  choose_form(conv, conv.is_worth_trying(false), conv.is_worth_trying(true), worker, budget / 2);
}

void choose_blocks(Int8ConvStep& conv, const Worker& worker, double budget, Kernels kernels) {
  const bool only_4x4 = kernels == Kernels::kBlocks4x4 && conv.can_serve(true);
  const bool blocks4x4 = only_4x4 || (kernels != Kernels::kBlocks && conv.is_worth_trying(true));
  choose_form(conv, !only_4x4, blocks4x4, worker, blocks4x4 && !only_4x4 ? budget / 2 : budget);
}

bool asks_for_lists(Kernels kernels) { return kernels == Kernels::kActive || kernels == Kernels::kActiveIfSparse; }
double most_dense_of(Kernels kernels) { return kernels == Kernels::kActive ? 1 : 0.25; }

// Chooses between lists of the input's nonzeros and planes as chosen before. The arena holds the example's input.
void choose_active(FloatConvStep& conv, size_t number, const Worker& worker, double budget, Kernels kernels) {
  const ConvStep& planes = conv.planes();
  const double zeros = conv.input_zeros(worker.arena);
  conv.set_measured(zeros, 0, "");
  const auto candidates = conv.candidates();
  if (candidates.empty()) return;
  if (asks_for_lists(kernels)) {
    ActiveChoice c = candidates[number % candidates.size()];
    c.most_dense = most_dense_of(kernels);
    conv.pack(c);
    conv.set_measured(zeros, 0, "asked for");
    return;
  }
  // The cost per nonzero activation is about the cost per nonzero weight. Both exceed a dense multiply-add.
  const double left = planes.choice().dense ? 0.6 : 1.5 * (1 - conv.op().weights->zeros());
  if (kernels == Kernels::kPlanes || 1 - zeros > left || planes.ms() <= 0) return;
  auto [choice, seconds] = fastest(conv, candidates, worker, budget);
  const double ms = 1e3 * seconds;
  const bool pays = ms < 0.95 * planes.ms();
  // Assumes time proportional to nonzeros and solves for the density at which the two forms tie. Lists have a fixed
  // cost too, so they still pay off there.
  choice.most_dense = std::min(1.0, (1 - zeros) * planes.ms() / ms);
  conv.pack(pays ? choice : ActiveChoice{});
  char why[160];
  std::snprintf(why, sizeof why, "%.0f %% zeros come in: %.2fx as fast as %s", 100 * zeros, planes.ms() / ms,
                planes.choice().dense ? "dense" : "sparse");
  conv.set_measured(zeros, ms, why);
}

}  // namespace

void Plan::choose(double budget, const std::vector<const float*>& example, Kernels kernels,
                  std::map<const ConvAttributes*, ActiveChoice>& active) {
  const double until = now() + budget;
  for (FloatConvStep* conv : convs_) {
    conv->planes().pack(conv->planes().likeliest());
    if (auto known = active.find(&conv->op()); known != active.end() && conv->fits(known->second))
      conv->pack(known->second);
  }
  for (Int8ConvStep* conv : int8_convs_) conv->pack(conv->likeliest());
  if (random_) return choose_at_random(budget > 0, example, kernels, active);
  if (budget > 0 && !(convs_.empty() && int8_convs_.empty())) choose_by_time(until, example, kernels, active);
  place_lists();
}

void Plan::choose_by_time(double until, const std::vector<const float*>& example, Kernels kernels,
                          std::map<const ConvAttributes*, ActiveChoice>& active) {
  const int64_t lists_at = planes_floats_;
  int64_t scratch = scratch_floats(1), form = 0;
  for (const Int8ConvStep* conv : int8_convs_) scratch = std::max(scratch, conv->largest_scratch());
  for (FloatConvStep* conv : convs_) {
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
    const size_t left = convs_.size() - at + int8_convs_.size() - at_blocks + 1;
    return std::max(until - now(), 0.0) / static_cast<double>(left);
  };
  for (const auto& step : made_.image) {
    const bool is_conv = at < convs_.size() && step.get() == convs_[at];
    if (at_blocks < int8_convs_.size() && step.get() == int8_convs_[at_blocks]) {
      ++at_blocks;
      choose_blocks(*int8_convs_[at_blocks - 1], worker, share(), kernels);
    }
    if (is_conv) {
      FloatConvStep& conv = *convs_[at++];
      const double left = share();
      conv.pack({});
      choose_planes(conv.planes(), worker, left * 2 / 3);
      if (!example.empty()) {
        choose_active(conv, at - 1, worker, left / 3, kernels);
        active[&conv.op()] = conv.choice();
      }
    }
    if (!example.empty()) step->run_all(call.call, worker, 0, 1);
  }
}

// Kernels that a test asks for stay, at other sizes too; the rest is drawn. An example is run through the steps, so
// that reports show its zeros.
void Plan::choose_at_random(bool zeros_wanted, const std::vector<const float*>& example, Kernels kernels,
                            std::map<const ConvAttributes*, ActiveChoice>& active) {
  for (FloatConvStep* conv : convs_) {
    Draws draws = random_->draws(conv->name(), conv->planes().size());
    ConvStep& planes = conv->planes();
    const bool dense = !planes.can_serve(false) || draws.below(2);
    planes.pack(draws.one_of(planes.all_candidates(dense)));
    planes.set_why(kAtRandom);
    if (active.count(&conv->op())) continue;  // a test asked for it
    const auto lists = conv->all_candidates();
    ActiveChoice choice;
    if (!lists.empty() && kernels != Kernels::kPlanes && (asks_for_lists(kernels) || draws.below(3) == 0)) {
      choice = draws.one_of(lists);
      // Images with more nonzeros take the planes, also within a batch.
      choice.most_dense = asks_for_lists(kernels) ? most_dense_of(kernels) : draws.one_of<double>({0.3, 0.6, 1, 1});
    }
    conv->pack(choice);
    conv->set_measured(-1, 0, conv->active() ? kAtRandom : "");
    if (kernels == Kernels::kPlanes || asks_for_lists(kernels)) active[&conv->op()] = choice;
  }
  for (Int8ConvStep* conv : int8_convs_) {
    Draws draws = random_->draws(conv->name(), conv->size());
    const bool blocks4x4 =
        conv->can_serve(true) && kernels != Kernels::kBlocks && (kernels == Kernels::kBlocks4x4 || draws.below(2));
    conv->pack(draws.one_of(conv->all_candidates(blocks4x4)));
    conv->set_why(kAtRandom);
  }
  place_lists();
  if (!zeros_wanted || example.empty()) return;
  const Buffer memory(arena_floats_ + scratch_floats(1));
  std::fill_n(memory.data(), arena_floats_, 0.0f);
  const Worker worker{memory.data(), memory.data() + arena_floats_};
  ExampleCall call(*this, example);
  size_t at = 0;
  for (const auto& step : made_.image) {
    if (at < convs_.size() && step.get() == convs_[at]) {
      FloatConvStep& conv = *convs_[at++];
      conv.set_measured(conv.input_zeros(worker.arena), 0, conv.active() ? kAtRandom : "");
    }
    step->run_all(call.call, worker, 0, 1);
  }
}

}  // namespace secateur::engine
