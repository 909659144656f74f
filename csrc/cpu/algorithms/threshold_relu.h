// threshold_relu over a span of one row: one read and one write of the activations, one bit per element.
#pragma once

#include "bits.h"

namespace secateur::cpu {
namespace {

// Walks a row 16 elements at a time and gives the theta of these lanes.
template <class C>
struct ThetaWalk {
  const ThetaView<C>& view;
  int64_t channel, within;  // of the next lane

  ThetaWalk(const ThetaView<C>& of, int64_t begin)
      : view(of), channel(begin / of.inner % of.channels), within(begin % of.inner) {}

  auto next() {
    if (within + 16 <= view.inner) {  // all lanes in one channel: feature maps
      auto theta = splat(view.data[channel]);
      within += 16;
      if (within == view.inner) step();
      return theta;
    }
    if (view.inner == 1 && channel + 16 <= view.channels) {  // one lane per channel: features, channels_last
      auto theta = load(view.data + channel);
      channel += 16;
      if (channel == view.channels) channel = 0;
      return theta;
    }
    C lanes[16];
    for (C& lane : lanes) {
      lane = view.data[channel];
      if (++within == view.inner) step();
    }
    return load(lanes);
  }

 private:
  void step() {
    within = 0;
    if (++channel == view.channels) channel = 0;
  }
};

// NaN compares false everywhere here: it stays NaN and passes its gradient, as in torch.relu.
template <bool HasMax, class T, class C>
inline uint32_t threshold_16(const T* x, T* y, decltype(splat(C{})) theta, C max, T max_stored) {
  auto v = load(x);
  uint32_t below = less(v, theta);
  uint32_t blocked = below | less_equal(v, splat(C{0}));
  auto out = keep(load_raw(x), ~below & 0xffff);
  if constexpr (HasMax) {
    out = blend(out, splat_raw(max_stored), less(splat(max), v) & ~below);
    blocked |= less_equal(splat(max), v);
  }
  store_raw(y, out);
  return ~blocked & 0xffff;
}

template <bool HasMax, class T, class C>
void threshold_span(const ThresholdRelu<T, C>& row) {
  ThetaWalk<C> thetas(row.theta, row.begin);
  int64_t i = row.begin;
  for (; i + 16 <= row.end; i += 16)
    store_bits(row.mask, i, threshold_16<HasMax, T, C>(row.x + i, row.y + i, thetas.next(), row.max, row.max_stored));
  if (int64_t count = row.end - i; count > 0) {
    Tail<T> tail(row.x + i, count);
    uint32_t bits = threshold_16<HasMax, T, C>(tail.lane, tail.lane, thetas.next(), row.max, row.max_stored);
    store_tail_bits(row.mask, i, count, bits);
    tail.store(row.y + i, count);
  }
}

template <class T, class C>
void threshold_relu(const ThresholdRelu<T, C>& row) {
  if (row.has_max) threshold_span<true>(row);
  else threshold_span<false>(row);
}

}  // namespace
}  // namespace secateur::cpu
