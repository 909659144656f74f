// threshold_relu: y = 0 where x < theta of its channel, else x; one bit an element of what passes a gradient.
//
// The floor is memory: one read and one write of the activations and 1/8 byte of mask an element (see mask_apply.cu).
// A thread finds its channel by two divisions for 8 elements and then counts.
#include <launch.h>
#include "elements.cuh"

namespace secateur::cuda {
namespace {

template <class T>
struct ThresholdRelu {
  using Shared = NoShared;
  using C = compare_t<T>;
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

  template <class Thread>
  SECATEUR_DEVICE void run(const Thread& thread, Shared&) const {
    grid_stride(thread, view.groups, [&](int64_t i) {
      const Group group = group_of(view, i);
      int64_t channel = 0, within = 0;
      if (channels > 1) {
        const int64_t planes = divide(group.at, inner);
        within = group.at - planes * inner;
        channel = planes - divide(planes, channels) * channels;
      }
      C limit = theta[channel];
      Eight<T> v = load_8(x + group.at, group.count);
      uint32_t bits = 0;
      for (int lane = 0; lane < 8; ++lane) {
        bits |= static_cast<uint32_t>(one(v.lane[lane], limit)) << lane;
        if (channels > 1 && ++within == inner) {
          within = 0;
          if (++channel == channels) channel = 0;
          limit = theta[channel];
        }
      }
      store_8(y + group.at, v, group.count);
      mask[i] = static_cast<uint8_t>(bits & ((1u << group.count) - 1));  // unused bits of a row's last byte are zero
    });
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
