// statistics_threshold: theta = mean - k * std of a row, keep |w| >= theta, zero the rest.
//
// A row belongs to a team: a warp for short rows, a block for long ones. Sums run in double: each thread over its own
// groups, then a tree over shared memory in one fixed order, so theta depends neither on the grid nor on the schedule.
//
// The floor is one read and one write of the weights (8.125 bytes a float32). The fused pass reads a row twice, the
// second time out of L1 or L2 (1056 rows of 16 KB in flight are 17 MB, an H100 has 50 MB of L2). In place a second
// launch must wait until the first has found every row finite, since an error may change no weight: 12.125 bytes an
// element where the tensor exceeds L2. Few and long rows leave multiprocessors idle: layers have hundreds of neurons,
// and this runs when pruning, not in every step.
#include <launch.h>
#include "elements.cuh"

namespace secateur::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int64_t kShortRow = 2048;  // up to 8 groups a lane of a warp

struct Partial {
  double sum;
  double spread;  // of squared deviations; of |d| where squares wait for a second pass
};
SECATEUR_DEVICE Partial operator+(const Partial& a, const Partial& b) { return {a.sum + b.sum, a.spread + b.spread}; }

struct PartialShared {
  Partial of_thread[kThreads];
};

template <class T, int kTeam>
struct StatisticsThreshold {
  using Shared = PartialShared;
  using C = compare_t<T>;
  static constexpr bool kTwoPasses = sizeof(T) == 8;
  static_assert(kTeam == kWarp || kTeam == kThreads, "a team is a warp or a block: what can wait for each other");
  const T* w;
  T* y;
  uint8_t* mask;
  C* theta;
  int64_t* bad;
  View view;
  double k;
  bool is_signed;
  Pass pass;

  template <class Thread>
  SECATEUR_DEVICE static void wait(const Thread& thread) {
    if constexpr (kTeam == kWarp) thread.sync_warp();
    else thread.sync_block();
  }

  template <class Thread>
  SECATEUR_DEVICE static Partial total(const Thread& thread, Partial* of_team, int lane, const Partial& mine) {
    of_team[lane] = mine;
    wait(thread);
    for (int half = kTeam / 2; half > 0; half /= 2) {
      if (lane < half) of_team[lane] = of_team[lane] + of_team[lane + half];
      wait(thread);
    }
    const Partial all = of_team[0];
    wait(thread);  // before the next row writes
    return all;
  }

  // body(first element, elements) for the groups of a row that are this lane's.
  template <class Body>
  SECATEUR_DEVICE void own_groups(const T* row, int lane, const Body& body) const {
    for (int64_t group = lane; group < view.bytes; group += kTeam) {
      const int64_t left = view.columns - group * 8;
      const int count = left < 8 ? static_cast<int>(left) : 8;
      body(group, load_8(row + group * 8, count), count);
    }
  }

  SECATEUR_DEVICE C sample(T element) const {
    const C v = widen(element);
    return is_signed ? v : magnitude(v);
  }

  SECATEUR_DEVICE Partial deviations(const T* row, int lane, double center, bool squared) const {
    Partial mine{0, 0};
    own_groups(row, lane, [&](int64_t, const Eight<T>& v, int count) {
      for (int i = 0; i < 8; ++i) {
        if (i >= count) continue;
        const double d = sample(v.lane[i]) - center;
        mine.sum += kTwoPasses ? static_cast<double>(sample(v.lane[i])) : d;
        mine.spread += squared ? d * d : magnitude(d);
      }
    });
    return mine;
  }

  template <class Thread>
  SECATEUR_DEVICE bool decide(const Thread& thread, Partial* of_team, int lane, int64_t r, C& limit) const {
    const T* row = w + r * view.columns;
    // The CPU's arithmetic (csrc/cpu/algorithms/statistics_threshold.h), in another order: floats are measured from the
    // row's first sample in one pass, so the variance survives mean >> std; doubles take a second pass, around the
    // mean.
    const double first = sample(row[0]), n = static_cast<double>(view.columns);
    const Partial all = total(thread, of_team, lane, deviations(row, lane, first, !kTwoPasses));
    const double average = all.sum / n;
    double mean, variance;
    if constexpr (kTwoPasses) {
      mean = average;
      variance = total(thread, of_team, lane, deviations(row, lane, mean, true)).spread / n;
    } else {
      mean = first + average;
      variance = all.spread / n - average * average;
    }
    // std 0: theta is the sample itself, not a sum that may have rounded, and |w| >= theta keeps the whole neuron.
    const bool constant = all.spread == 0;
    limit = static_cast<C>((constant ? first : mean) - k * (constant || variance < 0 ? 0 : sqrt(variance)));
    const bool finite = variance - variance == 0 && mean - mean == 0;
    if (lane == 0) {
      theta[r] = limit;
      if (!finite) thread.lower(bad, r);
    }
    return finite;
  }

  SECATEUR_DEVICE void apply(int lane, int64_t r, C limit) const {
    T* target = y + r * view.columns;
    uint8_t* bits_of_row = mask + r * view.bytes;
    own_groups(w + r * view.columns, lane, [&](int64_t group, Eight<T> v, int count) {
      uint32_t bits = 0;
      for (int i = 0; i < 8; ++i) {
        const bool keep = limit <= magnitude(widen(v.lane[i]));
        if (!keep) v.lane[i] = T{};
        bits |= static_cast<uint32_t>(keep && i < count) << i;
      }
      store_8(target + group * 8, v, count);
      bits_of_row[group] = static_cast<uint8_t>(bits);
    });
  }

  template <class Thread>
  SECATEUR_DEVICE void run(const Thread& thread, Shared& shared) const {
    const int team = thread.thread() / kTeam, lane = thread.thread() % kTeam, teams = kThreads / kTeam;
    // The same for every thread of a team, so all of it arrives at each wait.
    for (int64_t r = thread.block() * teams + team; r < view.rows; r += thread.blocks() * teams) {
      C limit;
      if (pass == Pass::kApply) {
        limit = theta[r];
      } else if (!decide(thread, shared.of_thread + team * kTeam, lane, r, limit)) {
        continue;
      }
      if (pass != Pass::kDecide) apply(lane, r, limit);
    }
  }
};

template <class T, int kTeam>
Failure launch_team(const StatisticsCall& call, Pass pass, Queue queue) {
  return launch(StatisticsThreshold<T, kTeam>{static_cast<const T*>(call.w), static_cast<T*>(call.y), call.mask,
                                              static_cast<compare_t<T>*>(call.theta), call.bad, call.view, call.k,
                                              call.is_signed, pass},
                call.view.rows * kTeam, queue);
}

template <class T>
Failure launch_for(const StatisticsCall& call, Pass pass, Queue queue) {
  if (call.view.columns <= kShortRow) return launch_team<T, kWarp>(call, pass, queue);
  return launch_team<T, kThreads>(call, pass, queue);
}

}  // namespace

Failure statistics_threshold(const StatisticsCall& call, Pass pass, Queue queue) {
  if (call.view.groups == 0) return nullptr;
  switch (call.element) {
    case Element::kF32: return launch_for<float>(call, pass, queue);
    case Element::kF64: return launch_for<double>(call, pass, queue);
    case Element::kBF16: return launch_for<bf16>(call, pass, queue);
    default: return launch_for<f16>(call, pass, queue);
  }
}

Failure reset_row(int64_t* row, Queue queue) { return fill_bytes(row, 0x7f, sizeof *row, queue); }

Failure read_row(const int64_t* row, int64_t* host, Queue queue) { return fetch(host, row, sizeof *host, queue); }

}  // namespace secateur::cuda
