// What every operator's front shares: checks with readable messages, the packed-mask shape, memory layouts.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "threads.h"

namespace secateur::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// An error names operator, argument, rule and value: check(ok, "mask_apply: mask must be uint8, got ", name(dtype)).
template <class... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (ok) [[likely]]
    return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

const char* name(ScalarType dtype);

// A shape in a message: "[64, 3, 7, 7]". Written out only where a check has failed.
struct Shown {
  Sizes shape;
};
inline Shown show(Sizes shape) { return {shape}; }
std::ostream& operator<<(std::ostream& out, const Shown& shown);

// The 2-d view under which a tensor is packed: rows = shape[0], columns = all other sizes multiplied.
struct Rows {
  int64_t rows;
  int64_t columns;
  int64_t bytes() const { return columns / 8 + (columns % 8 != 0); }
};
Rows rows_of(Sizes shape, const char* op);

// uint8, contiguous after this call, on the CPU like `like`, shaped [rows, bytes].
Tensor checked_mask(const char* op, const Tensor& mask, const Rows& view, const Tensor& like);
Tensor new_mask(const Tensor& like, const Rows& view);
void check_floating(const char* op, const char* argument, const Tensor& t);
// For in-place forms: two elements in one place would make the result depend on the order of the writes.
void check_writable(const char* op, const char* argument, const Tensor& t);

// One theta a channel or a single one, in the type that the comparison runs in. Its values are not looked at here: on
// an accelerator that would wait for the device.
struct Theta {
  Tensor values;  // contiguous float32, or float64 for float64 activations
  int64_t channels;
  int64_t inner;
};
Theta checked_theta(const char* op, const Tensor& theta, const Tensor& x, const Rows& view);

// How the elements lie. kChannelsLast: [N][inner][C] in memory for a logical [N, C, inner...].
enum class Layout { kContiguous, kChannelsLast, kStrided };
Layout layout_of(const Tensor& t);

// Bits of a logical [rows, a, b] mask -> bits of [rows, b, a], row starts on a byte: how a mask in logical order meets
// channels_last memory, and back (transpose_bits.cpp).
void transpose_bits(const uint8_t* from, uint8_t* to, int64_t rows, int64_t a, int64_t b);

// The mask in the order of memory, given in logical order (contiguous layouts share the tensor).
Tensor mask_in_memory_order(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout);
Tensor mask_in_logical_order(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout);

// Work is split so that each piece has at least this many elements (below it a thread costs more than it does).
inline constexpr int64_t kGrain = 1 << 15;

// Runs body(row_begin, row_end) or, where rows are few and long, body over slices of one row: body(row, begin, end).
// Slices start at multiples of 512 elements, so no two of them share a mask byte.
template <class ByRows, class BySlices>
void parallel_rows(const Rows& view, const ByRows& by_rows, const BySlices& by_slices) {
  if (view.rows == 0 || view.columns == 0) return;
  constexpr int64_t kSlice = 1 << 16;
  if (view.columns <= kSlice) {
    const int64_t grain = kGrain / view.columns + 1;
    parallel_for(0, view.rows, grain, by_rows);
    return;
  }
  const int64_t slices = (view.columns + kSlice - 1) / kSlice;
  parallel_for(0, view.rows * slices, 1, [&](int64_t from, int64_t to) {
    for (int64_t unit = from; unit < to; ++unit) {
      const int64_t row = unit / slices, begin = unit % slices * kSlice;
      by_slices(row, begin, begin + kSlice < view.columns ? begin + kSlice : view.columns);
    }
  });
}

}  // namespace secateur::ops
