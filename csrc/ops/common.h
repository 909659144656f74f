// Code that all operators share: checks with readable messages, the packed-mask shape, memory layouts.
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

// Errors name operator, argument, rule and value: check(ok, "mask_apply: mask must be uint8, got ", name(dtype)).
template <class... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (ok) [[likely]]
    return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

const char* name(ScalarType dtype);

// What a message calls an argument: "mask", or "masks[3]", one of a list.
struct Argument {
  Argument(const char* argument, int64_t place = -1) : name(argument), index(place) {}
  const char* name;
  int64_t index;  // -1: no list
};
std::ostream& operator<<(std::ostream& out, const Argument& argument);

// A shape in a message: "[64, 3, 7, 7]". Formatted only if a check has failed.
struct Shown {
  Sizes shape;
};
inline Shown show(Sizes shape) { return {shape}; }
std::ostream& operator<<(std::ostream& out, const Shown& shown);

// The 2-d view in which a tensor is packed: rows = shape[0], columns = all other sizes multiplied.
struct Rows {
  int64_t rows;
  int64_t columns;
  int64_t bytes() const { return columns / 8 + (columns % 8 != 0); }
};
Rows rows_of(Sizes shape, const char* op);

// Checks uint8, the device (CPU like `like`) and the shape [rows, bytes]; returns it contiguous.
Tensor checked_mask(const char* op, const Tensor& mask, const Rows& view, const Tensor& like,
                    const Argument& argument = "mask");
Tensor new_mask(const Tensor& like, const Rows& view);
void check_floating(const char* op, const Argument& argument, const Tensor& t);
// For in-place forms: with overlapping elements the result would depend on the order of the writes.
void check_writable(const char* op, const Argument& argument, const Tensor& t);

// One theta per channel or a single one, in the type of the comparison. Its values are not checked here: on an
// accelerator that would wait for the device.
struct Theta {
  Tensor values;  // contiguous float32, or float64 for float64 activations
  int64_t channels;
  int64_t inner;
};
Theta checked_theta(const char* op, const Tensor& theta, const Tensor& x, const Rows& view);

// Memory layout of the elements. kChannelsLast: [N][inner][C] in memory for a logical [N, C, inner...].
enum class Layout { kContiguous, kChannelsLast, kStrided };
Layout layout_of(const Tensor& t);

// torch's empty_like. torch::stable's looks the operator up by its name at each call: longer than a small activation
// takes.
Tensor new_like(const Tensor& t);

// Bits of a logical [rows, a, b] mask -> bits of [rows, b, a]; rows start on a byte. Converts a mask between logical
// order and channels_last memory (transpose_bits.cpp).
void transpose_bits(const uint8_t* from, uint8_t* to, int64_t rows, int64_t a, int64_t b);

// The mask in memory order, from one in logical order (contiguous layouts share the tensor).
Tensor mask_in_memory_order(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout);
Tensor mask_in_logical_order(const Tensor& mask, const Tensor& t, const Rows& view, Layout layout);

// Smallest number of elements of a piece of work (below it a thread costs more than it saves), and the elements of a
// slice of a row that is cut.
inline constexpr int64_t kGrain = 1 << 15, kSlice = 1 << 16;

// Runs body(row_begin, row_end), or for few long rows body(row, begin, end) over slices of one row. Slices start at
// multiples of 512 elements, so no two of them share a mask byte.
template <class ByRows, class BySlices>
void parallel_rows(const Rows& view, const ByRows& by_rows, const BySlices& by_slices) {
  if (view.rows == 0 || view.columns == 0) return;
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
