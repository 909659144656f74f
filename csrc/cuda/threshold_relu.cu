// threshold_relu: y = 0 where x < theta of its channel, else x; one bit an element of what passes a gradient.
//
// The floor is memory: one read and one write of the activations and 1/8 byte of mask an element (see mask_apply.cu).
// A thread finds its channel by two divisions for 8 elements.
#include <launch.h>
#include "elements.cuh"

namespace secateur::cuda {
namespace {

template <class T>
struct ThresholdRelu {
  using Shared = NoShared;
  using C = compare_t<T>;
  // Groups of a thread on their way together: one of 16-bit elements alone keeps too few bytes in flight.
  static constexpr int kAhead = sizeof(T) == 8 ? 1 : 2;
  const T* x;
  T* y;
  uint8_t* mask;
  View view;
  const C* theta;
  int64_t channels, inner;
  bool has_max;
  C max;
  T max_stored;

  // Written so that NaN compares false everywhere: it stays NaN and passes its gradient, as in torch.relu.
  SECATEUR_DEVICE bool one(T& element, C limit) const {
    const C v = widen(element);
    const bool below = v < limit;
    bool blocked = below || v <= C{0};
    if (below) element = T{};
    if (has_max) {
      if (!below && max < v) element = max_stored;
      blocked = blocked || max <= v;
    }
    return !blocked;
  }

  // The thresholds of 8 elements from one on. Mostly a plane's, or neighbours in channels_last memory: one load, or
  // two.
  SECATEUR_DEVICE Eight<C> limits(int64_t at) const {
    Eight<C> limit;
    int64_t channel = 0, within = 0;
    if (channels > 1) {
      const int64_t planes = divide(at, inner);
      within = at - planes * inner;
      channel = planes - divide(planes, channels) * channels;
    }
    if (channels == 1 || inner - within >= 8) {
      const C common = theta[channel];
      for (int lane = 0; lane < 8; ++lane) limit.lane[lane] = common;
    } else if (inner == 1 && channels % 8 == 0 && channel % 8 == 0) {
      limit = load_8(theta + channel, 8);
    } else {
      for (int lane = 0; lane < 8; ++lane) {
        limit.lane[lane] = theta[channel];
        if (++within == inner) {
          within = 0;
          if (++channel == channels) channel = 0;
        }
      }
    }
    return limit;
  }

  // Thresholds 8 elements from `at` on; returns the bits of those that pass.
  SECATEUR_DEVICE uint32_t eight(Eight<T>& v, int64_t at) const {
    const Eight<C> limit = limits(at);
    uint32_t bits = 0;
    for (int lane = 0; lane < 8; ++lane) bits |= static_cast<uint32_t>(one(v.lane[lane], limit.lane[lane])) << lane;
    return bits;
  }

  template <class Thread>
  SECATEUR_DEVICE void run(const Thread& thread, Shared&) const {
    if (view.columns % 8 != 0 || !is_aligned(x) || !is_aligned(y)) {
      grid_stride(thread, view.groups, [&](int64_t i) {
        const Group group = group_of(view, i);
        Eight<T> v = load_8(x + group.at, group.count);
        const uint32_t bits = eight(v, group.at);
        store_8(y + group.at, v, group.count);
        mask[i] = static_cast<uint8_t>(bits & ((1u << group.count) - 1));  // unused bits of a row's last byte are zero
      });
      return;
    }
    // Whole groups, of one long row. Raw, for as elements 16-bit ones would be unpacked before the next load starts.
    const int64_t step = thread.blocks() * thread.threads();
    for (int64_t i = thread.block() * thread.threads() + thread.thread(); i < view.groups; i += kAhead * step) {
      Raw<T> raw[kAhead];
      SECATEUR_UNROLLED
      for (int k = 0; k < kAhead; ++k)
        if (i + k * step < view.groups) raw[k] = reinterpret_cast<const Raw<T>*>(x)[i + k * step];
      SECATEUR_UNROLLED
      for (int k = 0; k < kAhead; ++k) {
        const int64_t at = i + k * step;
        if (at >= view.groups) break;
        Eight<T> v;
        memcpy(&v, &raw[k], sizeof v);
        mask[at] = static_cast<uint8_t>(eight(v, at * 8));
        memcpy(&raw[k], &v, sizeof v);
        reinterpret_cast<Raw<T>*>(y)[at] = raw[k];
      }
    }
  }
};

template <class T>
Failure launch_for(const ThresholdReluCall& call, Queue queue) {
  T max_stored;
  memcpy(&max_stored, &call.max_stored, sizeof max_stored);  // little-endian, as every CUDA host is
  return launch(ThresholdRelu<T>{static_cast<const T*>(call.x), static_cast<T*>(call.y), call.mask, call.view,
                                 static_cast<const compare_t<T>*>(call.theta), call.channels, call.inner, call.has_max,
                                 static_cast<compare_t<T>>(call.max), max_stored},
                call.view.groups, queue);
}

}  // namespace

Failure threshold_relu(const ThresholdReluCall& call, Queue queue) {
  switch (call.element) {
    case Element::kF32: return launch_for<float>(call, queue);
    case Element::kF64: return launch_for<double>(call, queue);
    case Element::kBF16: return launch_for<bf16>(call, queue);
    default: return launch_for<f16>(call, queue);
  }
}

}  // namespace secateur::cuda
