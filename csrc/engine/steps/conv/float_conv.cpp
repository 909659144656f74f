#include "float_conv.h"

#include <algorithm>
#include <cstdio>

namespace secateur::engine {
namespace {

constexpr int64_t kReach = 65536;                // range of a 16-bit index
constexpr int64_t kNearFloats = 512 * 1024 / 4;  // of weights that stay in the second-level cache

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

ActiveForm active_form(int64_t channels, int64_t height, int64_t width, int64_t group) {
  ActiveForm f;
  f.groups = (channels + group - 1) / group;
  f.group = group;
  f.height = height;
  f.width = width;
  f.list = up(width * group + kLanes, 2 * kLanes);  // the last write of a list is a whole vector
  f.start = up(width + 1, 2 * kLanes);
  return f;
}

FloatConvStep::FloatConvStep(const std::string& name, const ConvAttributes& op, const std::vector<Store>& stores, int x,
                             int y, int residual, const cpu::EngineKernels& kernels)
    : HaloedStep(name),
      op_(op),
      stores_(stores),
      x_(x),
      y_(y),
      residual_(residual),
      kernels_(kernels),
      planes_(name, op, stores, x, y, residual, kernels) {}

bool FloatConvStep::fits(const ActiveChoice& c) const {
  return op_.groups == 1 && op_.window.dilation[1] == 1 && c.group % kLanes == 0 && c.group > 0 &&
         stores_[x_].layout.width * c.group <= kReach && c.sums >= 1 && c.sums <= cpu::kActiveSums &&
         kernels_.active.taps[c.sums] != nullptr;
}

// The weights of one pass (kernel columns x group x sums) should stay in a near cache, and its loops should be long.
std::vector<ActiveChoice> FloatConvStep::candidates() const {
  const int64_t k = op_.weights->neurons(), columns = op_.window.kernel[1];
  const int64_t channels = up(op_.weights->per_neuron() / (op_.window.kernel[0] * columns), kLanes);
  std::vector<ActiveChoice> all;
  if (channels < kLanes || k < kLanes) return all;
  for (int sums : {4, 8, 2, 1}) {
    if (up(k, 16 * sums) > up(k, 16) * 5 / 4) continue;
    for (int64_t group : {32, 64, 128, 256}) {
      const int64_t vectors = columns * group * sums;
      if (group > channels && group != 32) continue;
      if (vectors < 256 && group < channels) continue;
      if (vectors > 1600) continue;
      const ActiveChoice c{std::min(group, channels), sums, 1};
      if (fits(c) && std::find(all.begin(), all.end(), c) == all.end()) all.push_back(c);
    }
    if (all.size() >= 6) break;
  }
  if (const ActiveChoice c{std::min<int64_t>(32, channels), k > 32 ? 4 : 2, 1}; all.empty() && fits(c))
    all.push_back(c);
  return all;
}

std::vector<ActiveChoice> FloatConvStep::all_candidates() const {
  const int64_t channels = up(stores_[x_].channels, kLanes);
  std::vector<ActiveChoice> all;
  for (int sums = 1; sums <= cpu::kActiveSums; ++sums)
    for (int64_t group : {16, 32, 64, 128, 256})
      if (const ActiveChoice c{group, sums, 1}; group <= channels && fits(c)) all.push_back(c);
  return all;
}

void FloatConvStep::pack(const ActiveChoice& choice) {
  choice_ = choice;
  weights_.clear();
  weights_.shrink_to_fit();
  if (!active()) return;
  const Store& x = stores_[x_];
  form_ = active_form(x.channels, x.layout.height, x.layout.width, choice.group);
  const int64_t k = op_.weights->neurons(), taps = op_.window.kernel[0] * op_.window.kernel[1];
  const int64_t width = this->width(), group = choice.group;
  weights_.assign(static_cast<size_t>((k + width - 1) / width * form_.groups * taps * group * width), 0.0f);
  for (int64_t o = 0; o < k; ++o)
    op_.weights->for_each(o, [&](int64_t i, float w) {
      const int64_t channel = i / taps, tap = i % taps;
      const int64_t row = ((o / width * form_.groups + channel / group) * taps + tap) * group + channel % group;
      weights_[static_cast<size_t>(row * width + o % width)] = w;
    });
}

void FloatConvStep::set_measured(double zeros, double active_ms, std::string why) {
  zeros_ = zeros;
  active_ms_ = active_ms;
  why_ = std::move(why);
}

int64_t FloatConvStep::largest_scratch() const {
  int64_t n = planes_.largest_scratch();
  for (const ActiveChoice& c : candidates())
    n = std::max({n, kLanes * stores_[x_].layout.cells.columns * c.group,
                  kLanes * stores_[y_].layout.cells.columns * c.sums * kLanes});
  return n;
}

int64_t FloatConvStep::largest_form() const {
  int64_t n = 0;
  const Store& x = stores_[x_];
  for (const ActiveChoice& c : candidates())
    n = std::max(n, active_form(x.channels, x.layout.height, x.layout.width, c.group).floats());
  return n;
}

double FloatConvStep::input_zeros(float* arena) const {
  const Store& x = stores_[x_];
  const CellGrid& b = x.layout.cells;
  int64_t nonzeros = 0;
  for (int64_t c = 0; c < x.channels; ++c)
    for_each_lane(b, [&](int64_t r, int64_t q, int64_t lane, int64_t row, int64_t column) {
      if (row < x.layout.height && column < x.layout.width)
        nonzeros += x.channel(arena, c)[(r * x.layout.pitch() + q) * kLanes + lane] != 0.0f;
    });
  return 1 - static_cast<double>(nonzeros) / static_cast<double>(x.channels * x.layout.height * x.layout.width);
}

// ---- the lists ----

ActiveLists FloatConvStep::lists(float* arena) const {
  float* place = arena + offset_;
  return {place, reinterpret_cast<uint16_t*>(place + form_.index_at()),
          reinterpret_cast<uint16_t*>(place + form_.start_at()), reinterpret_cast<uint32_t*>(place + form_.count_at())};
}

int64_t FloatConvStep::list_tasks() const {
  return std::min<int64_t>(form_.groups * stores_[x_].layout.cells.rows, 2 * work_units());
}

int64_t FloatConvStep::list_scratch() const {
  return active() ? kLanes * stores_[x_].layout.cells.columns * form_.group : 0;
}

void FloatConvStep::list(const Worker& worker, int64_t task) const {
  const int64_t rows = stores_[x_].layout.cells.rows;
  const Range mine = part(form_.groups * rows, task, list_tasks());
  for (int64_t i = mine.begin; i < mine.end; ++i)
    list_row(worker, i / rows, i % rows, worker.scratch, form_.group, true);
}

// The lists of one group for a vector row: from planes, or from pixels [lane][column][pixel].
void FloatConvStep::list_row(const Worker& worker, int64_t g, int64_t r, float* pixels, int64_t pixel,
                             bool from_planes) const {
  const Store& x = stores_[x_];
  const CellGrid& b = x.layout.cells;
  if (r >= form_.height) return;
  const ActiveLists to = lists(worker.arena);
  const int64_t first = g * form_.height + r;  // the list of grid row 0; grid rows are b.rows lists apart
  cpu::ActiveLists a{};
  if (from_planes) a.x = x.channel(worker.arena, g * form_.group) + r * x.layout.pitch() * kLanes;
  a.plane = x.plane_floats();
  a.channels = std::min(form_.group, x.channels - g * form_.group);
  a.group = form_.group;
  a.columns = b.columns;
  a.lane_rows = std::min(b.lane_rows, (form_.height - r + b.rows - 1) / b.rows);
  a.lane_columns = b.lane_columns;
  a.width = form_.width;
  a.pixels = pixels;
  a.pixel = pixel;
  a.values = to.values + first * form_.list;
  a.index = to.index + first * form_.list;
  a.start = to.start + first * form_.start;
  a.count = to.count + first;
  a.list_step = b.rows * form_.list;
  a.start_step = b.rows * form_.start;
  a.count_step = b.rows;
  kernels_.active.lists(a);
}

// A residual comes in planes, so sums that wait for one are not final. And a unit must have whole groups.
bool FloatConvStep::can_feed(const FloatConvStep& reader) const {
  return active() && reader.active() && reader.x_ == y_ && residual_ < 0 && width() % reader.choice_.group == 0;
}

void FloatConvStep::feed(FloatConvStep& reader) {
  readers_.push_back(&reader);
  reader.fed_ = true;
}

void FloatConvStep::tell_readers(float* arena, bool written) const {
  for (const FloatConvStep* reader : readers_) reader->lists(arena).count[reader->form_.lists()] = written;
}

bool FloatConvStep::pays(float* arena) const {
  const uint32_t* count = lists(arena).count;
  if (fed_ && !count[form_.lists()]) return false;
  int64_t nonzeros = 0;
  for (int64_t i = 0; i < form_.lists(); ++i) nonzeros += count[i];
  const Store& x = stores_[x_];
  return static_cast<double>(nonzeros) <=
         choice_.most_dense * static_cast<double>(x.channels * form_.height * form_.width);
}

// ---- lists x weights ----

int64_t FloatConvStep::units() const {
  return (op_.weights->neurons() + width() - 1) / width() * stores_[y_].layout.cells.rows;
}

// The form is known only once the lists are written, so there are enough tasks for either.
int64_t FloatConvStep::tasks() const { return active() ? std::max(active_tasks(), planes_.tasks()) : planes_.tasks(); }

int64_t FloatConvStep::scratch_floats(int64_t count) const {
  int64_t n = planes_.scratch_floats(count);
  if (active()) n = std::max({n, list_scratch(), kLanes * stores_[y_].layout.cells.columns * width()});
  return n;
}

void FloatConvStep::run(const Call& call, const Worker& worker, int64_t image, int64_t count, int64_t task) const {
  const bool by_lists = active() && pays(worker.arena);
  if (task == 0) tell_readers(worker.arena, by_lists);
  if (!by_lists) {
    if (task < planes_.tasks()) planes_.run(call, worker, image, count, task);
    return;
  }
  if (task < active_tasks()) run_units(worker, part(units(), task, active_tasks()));
}

void FloatConvStep::run_all(const Call& call, const Worker& worker, int64_t image, int64_t count) const {
  if (active()) {
    for (int64_t t = 0; !fed_ && t < list_tasks(); ++t) list(worker, t);
    if (pays(worker.arena)) {
      tell_readers(worker.arena, true);
      run_units(worker, {0, units()});
      stores_[y_].fill_halos(kernels_, worker.arena, 0, op_.weights->neurons());
      return;
    }
    tell_readers(worker.arena, false);
  }
  planes_.run_all(call, worker, image, count);
}

void FloatConvStep::run_units(const Worker& worker, Range units) const {
  const int64_t rows = stores_[y_].layout.cells.rows;
  for (int64_t u = units.begin; u < units.end; ++u) run_unit(worker, u / rows, u % rows);
}

void FloatConvStep::run_unit(const Worker& worker, int64_t block, int64_t row) const {
  const Store& y = stores_[y_];
  const CellGrid& b = y.layout.cells;
  const auto& w = op_.window;
  const int64_t width = this->width(), lanes = b.lane_rows * b.lane_columns;
  const ActiveLists from = lists(worker.arena);
  float* sums = worker.scratch;
  std::fill_n(sums, lanes * b.columns * width, 0.0f);
  cpu::ActiveTaps t{};
  t.width = form_.width;
  t.group = form_.group;
  t.kernel_columns = w.kernel[1];
  t.step = w.stride[1];
  const int64_t slab_floats = w.kernel[1] * form_.group * width;
  const auto weight_count = static_cast<int64_t>(weights_.size());
  const bool far = weight_count > kNearFloats;
  for (int64_t g = 0; g < form_.groups; ++g)
    for (int64_t r = 0; r < w.kernel[0]; ++r) {
      const int64_t slab = (block * form_.groups + g) * w.kernel[0] + r;
      t.weights = weights_.data() + slab * slab_floats;
      const Range all{(slab + 1) * slab_floats, std::min<int64_t>((slab + 2) * slab_floats, weight_count)};
      for (int64_t lane = 0; lane < lanes; ++lane) {
        if (far) {  // the access order is unpredictable: prefetch the weights of the next pass
          const Range next = part(std::max<int64_t>(all.end - all.begin, 0), lane, lanes);
          for (int64_t i = all.begin + next.begin; i < all.begin + next.end; i += kLanes)
            __builtin_prefetch(weights_.data() + i, 0, 2);
        }
        const int64_t oy = lane / b.lane_columns * b.rows + row, ox = lane % b.lane_columns * b.columns;
        const int64_t iy = oy * w.stride[0] + r * w.dilation[0] - w.padding[0];
        t.count = std::min(b.columns, y.layout.width - ox);
        if (oy >= y.layout.height || iy < 0 || iy >= form_.height || t.count <= 0) continue;
        const int64_t list = g * form_.height + iy;
        t.values = from.values + list * form_.list;
        t.index = from.index + list * form_.list;
        t.start = from.start + list * form_.start;
        t.total = from.count[list];
        t.first = ox * w.stride[1] - w.padding[1];
        t.sums = sums + lane * b.columns * width;
        kernels_.active.taps[choice_.sums](t);
      }
    }
  cpu::TileOut out{};
  out.first = out.last = true;
  out.y_row = y.layout.pitch() * kLanes;
  out.y_plane = y.plane_floats();
  out.y = y.channel(worker.arena, 0) + row * out.y_row;
  const float* bias = op_.bias.empty() ? nullptr : op_.bias.data();
  const int64_t channel = block * width, channels = std::min(width, op_.weights->neurons() - channel);
  if (readers_.empty()) {
    out.bias = bias;
    out.activation = op_.activation.view();
  } else {  // finish pixel by pixel; then write the readers' lists, and planes for other readers
    const cpu::Activation activation = op_.activation.view();
    kernels_.active.pixels({sums, lanes * b.columns, width, channels, bias ? bias + channel : nullptr,
                            activation.theta ? activation.theta + channel : nullptr, &activation});
    for (const FloatConvStep* reader : readers_)
      for (int64_t first = 0; first < channels; first += reader->form_.group)
        reader->list_row(worker, (channel + first) / reader->form_.group, row, sums + first, width, false);
  }
  out.valid_row = b.columns;
  out.valid = y.valid.empty() ? nullptr : y.valid.data() + row * b.columns;
  if (residual_ >= 0) {
    const Store& residual = stores_[residual_];
    out.residual_row = residual.layout.pitch() * kLanes;
    out.residual_plane = residual.plane_floats();
    out.residual = residual.channel(worker.arena, 0) + row * out.residual_row;
  }
  cpu::ActiveEpilogue end{};
  end.sums = sums;
  end.lanes = lanes;
  end.columns = b.columns;
  end.width = width;
  end.channel = channel;
  end.channels = channels;
  end.out = &out;
  kernels_.active.end(end);
}

StepReport FloatConvStep::report() const {
  StepReport r = planes_.report();
  r.input_zeros = zeros_;
  r.active_ms = active_ms_;
  if (!active()) {
    if (!why_.empty()) r.why += "; " + why_;
    return r;
  }
  char text[160];
  r.other_ms = r.ms;
  r.kernel = "active";
  std::snprintf(text, sizeof text, "%d ch out, %lld ch in, %lldx%lld", choice_.sums * 16,
                static_cast<long long>(form_.group), static_cast<long long>(stores_[y_].layout.height),
                static_cast<long long>(stores_[y_].layout.width));
  r.tile = text;
  r.chunk = form_.group;
  r.ms = active_ms_;
  r.why = why_;
  const Store& y = stores_[y_];
  r.multiply_adds = static_cast<double>(op_.weights->neurons() * op_.weights->per_neuron()) *
                    (1 - std::max(zeros_, 0.0)) * static_cast<double>(y.layout.height * y.layout.width) / kLanes;
  return r;
}

StepReport NonzeroListStep::report() const {
  StepReport r;
  r.name = name();
  r.kind = "nonzeros";
  if (conv_.fed()) r.why = "written by the layer before";
  return r;
}

}  // namespace secateur::engine
