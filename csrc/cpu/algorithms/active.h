// Sparse activations x dense weights. The sums of an output pixel stay in registers. Each nonzero is broadcast and
// multiplied with a row of weights, 16 output channels to a vector. The weights of one pass stay in the nearest caches.
// The nonzeros under a row of the kernel are one run of the list, so the loop length is known once for all of its taps.
#pragma once

#include "bits.h"
#include "planes_tile.h"

namespace secateur::cpu {
namespace {

inline int64_t within(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : v > hi ? hi : v; }

inline void active_lists(const ActiveLists& a) {
  for (int64_t c = 0; a.x && c < a.columns; ++c)
    for (int64_t first = 0; first < a.group; first += 16) {
      f32x16 v[16];
      for (int64_t i = 0; i < 16; ++i) {
        const float* at = a.x + (first + i) * a.plane + c * 16;
        v[i] = first + i < a.channels ? load(at) : splat(0.0f);
        if (first + i < a.channels) __builtin_prefetch(at + 64);  // too many streams for the hardware prefetcher
      }
      transpose(v);
      for (int64_t lane = 0; lane < a.lane_rows * a.lane_columns; ++lane)
        store(a.pixels + (lane * a.columns + c) * a.pixel + first, v[lane]);
    }
  for (int64_t row = 0; row < a.lane_rows; ++row) {
    float* values = a.values + row * a.list_step;
    uint16_t* index = a.index + row * a.list_step;
    uint16_t* start = a.start + row * a.start_step;
    const float* pixel = a.pixels + row * a.lane_columns * a.columns * a.pixel;
    int64_t n = 0;
    for (int64_t x = 0; x < a.width; ++x, pixel += a.pixel) {
      start[x] = static_cast<uint16_t>(n);
      for (int64_t i = 0; i < a.group; i += 16)
        n += compress_nonzeros(load(pixel + i), static_cast<uint32_t>(x * a.group + i), values + n, index + n);
    }
    start[a.width] = static_cast<uint16_t>(n);
    a.count[row * a.count_step] = static_cast<uint32_t>(n);
  }
}

template <int R, class Index>
inline void add_nonzeros(f32x16 (&sum)[R], const float* values, const Index* index, int64_t count, int64_t shift,
                         const float* weights) {
  const auto one = [&](f32x16(&into)[R], int64_t n) {
    const f32x16 v = splat(values[n]);
    const float* w = weights + (int64_t{index[n]} - shift) * (R * 16);
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) into[i] = multiply_add(v, load(w + 16 * i), into[i]);
  };
  int64_t n = 0;
  if constexpr (R < 4) {  // too few sums to hide the latency of a multiply-add: use two sets
    f32x16 odd[R];
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) odd[i] = splat(0.0f);
    for (; n + 2 <= count; n += 2) one(sum, n), one(odd, n + 1);
    if (n < count) one(sum, n);
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) sum[i] = add(sum[i], odd[i]);
  } else {
    for (; n < count; ++n) one(sum, n);
  }
}

template <int R>
void active_taps(const ActiveTaps& t) {
  for (int64_t p = 0; p < t.count; ++p) {
    const int64_t column = t.first + p * t.step;
    const int64_t begin = within(column, 0, t.width), end = within(column + t.kernel_columns, 0, t.width);
    const int64_t from = begin == t.width ? t.total : t.start[begin], to = end == t.width ? t.total : t.start[end];
    if (from == to) continue;
    float* at = t.sums + p * (R * 16);
    f32x16 sum[R];
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) sum[i] = splat(0.0f);
    add_nonzeros<R>(sum, t.values + from, t.index + from, to - from, column * t.group, t.weights);
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) store(at + 16 * i, add(load(at + 16 * i), sum[i]));
  }
}

inline void active_pixels(const ActivePixels& a) {
  with_activation(a.activation->act, [&](auto of) {
    for (int64_t first = 0; first < a.width; first += 16) {
      const int64_t n = within(a.channels - first, 0, 16);
      const f32x16 bias = a.bias && n ? load(Tail<float>(a.bias + first, n).lane) : splat(0.0f);
      const f32x16 theta = a.theta && n ? load(Tail<float>(a.theta + first, n).lane) : splat(0.0f);
      for (int64_t p = 0; p < a.pixels; ++p) {
        float* at = a.sums + p * a.width + first;
        const f32x16 v = activated<decltype(of)::act>(add(load(at), bias), a.activation->lo, a.activation->hi, theta);
        store(at, keep(v, (1u << n) - 1));
      }
    }
  });
}

inline void active_end(const ActiveEpilogue& a) {
  TileOut out = *a.out;
  const TileEpilogue end(out.activation);
  for (int64_t c = 0; c < a.columns; ++c) {
    for (int64_t first = 0; first < a.channels; first += 16) {
      f32x16 v[16];
      for (int64_t l = 0; l < 16; ++l)
        v[l] = l < a.lanes ? load(a.sums + (l * a.columns + c) * a.width + first) : splat(0.0f);
      transpose(v);
      for (int64_t i = 0; i < 16 && first + i < a.channels; ++i) {
        const int64_t channel = a.channel + first + i;
        Sums<1, 1> sum;
        begin_tile<1, 1>(sum, out, channel);
        sum.at[0] = add(sum.at[0], v[i]);
        end_tile<1, 1>(sum, out, end, 0, channel);
      }
    }
    out.y += 16;
    if (out.residual) out.residual += 16;
    if (out.valid) ++out.valid;
  }
}

inline int64_t compress(const float* x, int64_t count, float* values, int32_t* index) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    n += compress_nonzeros(left >= 16 ? load(x + i) : load_first(x + i, static_cast<int>(left)),
                           static_cast<uint32_t>(i), values + n, index + n);
  }
  return n;
}

// Rows of weights come from beyond the caches, so the rows of later nonzeros are prefetched. Every kTerms nonzeros have
// a partial sum: rounding errors grow with the number of partial sums, not of terms.
template <int R>
void active_vector(const ActiveVector& a) {
  constexpr int64_t kAhead = 8, kTerms = 256;
  f32x16 total[R];
  SECATEUR_UNROLL
  for (int i = 0; i < R; ++i) total[i] = splat(0.0f);
  for (int64_t begin = 0; begin < a.count; begin += kTerms) {
    f32x16 sum[R];
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) sum[i] = splat(0.0f);
    for (int64_t n = begin; n < within(begin + kTerms, 0, a.count); ++n) {
      const float* next = a.weights + int64_t{a.index[within(n + kAhead, 0, a.count - 1)]} * (R * 16);
      SECATEUR_UNROLL
      for (int i = 0; i < R; ++i) __builtin_prefetch(next + 16 * i);
      const f32x16 v = splat(a.values[n]);
      const float* w = a.weights + int64_t{a.index[n]} * (R * 16);
      SECATEUR_UNROLL
      for (int i = 0; i < R; ++i) sum[i] = multiply_add(v, load(w + 16 * i), sum[i]);
    }
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) total[i] = add(total[i], sum[i]);
  }
  SECATEUR_UNROLL
  for (int i = 0; i < R; ++i) store(a.sums + 16 * i, total[i]);
}

inline void active_columns(const ActiveColumns& a) {
  for (int64_t n = 0; n < a.count; ++n) {
    const float v = a.values[n];
    const uint32_t end = a.start[a.index[n] + 1];
    if (n + 2 < a.count) {
      const uint32_t next = a.start[a.index[n + 2]], after = a.start[a.index[n + 2] + 1];
      for (uint32_t i = next; i < after; i += 16) __builtin_prefetch(a.weights + i);
      for (uint32_t i = next; i < after; i += 32) __builtin_prefetch(a.rows + i);
    }
    for (uint32_t i = a.start[a.index[n]]; i < end; ++i)
      a.sums[a.rows[i]] = multiply_add(v, a.weights[i], a.sums[a.rows[i]]);
  }
}

inline void active_finish(const float* sums, const float* bias, const float* theta, const Activation& activation,
                          float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t n = within(count - i, 0, 16);
    alignas(64) float v[16];
    store(v, add(load(Tail<float>(sums + i, n).lane), bias ? load(Tail<float>(bias + i, n).lane) : splat(0.0f)));
    activate(v, 1, activation, theta ? load(Tail<float>(theta + i, n).lane) : splat(0.0f));
    for (int64_t j = 0; j < n; ++j) y[i + j] = v[j];
  }
}

constexpr ActiveKernels make_active_table() {
  ActiveKernels table{};
  table.lists = active_lists;
  table.taps[1] = active_taps<1>;
  table.taps[2] = active_taps<2>;
  table.taps[4] = active_taps<4>;
  table.taps[8] = active_taps<8>;
  table.pixels = active_pixels;
  table.end = active_end;
  table.compress = compress;
  table.vector[1] = active_vector<1>;
  table.vector[2] = active_vector<2>;
  table.vector[4] = active_vector<4>;
  table.vector[8] = active_vector<8>;
  table.vector[16] = active_vector<16>;
  table.columns = active_columns;
  table.finish = active_finish;
  return table;
}

}  // namespace
}  // namespace secateur::cpu
