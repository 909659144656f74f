// Sparse activations: arguments of the kernels that skip the zeros of their input.
//
// Nonzero form of a value: its channels form groups. Each (group, image row) has one list of nonzeros, pixel by pixel,
// channel by channel. A nonzero's index is x * group + channel. So the nonzeros under one row of a kernel are a
// contiguous run of the list, and the index and the output pixel alone give the address of the weights.
#pragma once

#include <cstdint>

namespace secateur::cpu {

struct Activation;
struct TileOut;

// Planes -> lists: one vector row of one group of channels. It is one image row for each row of the lane grid.
struct ActiveLists {
  const float* x;                   // vector 0 of the row, in the group's first channel
  int64_t plane;                    // floats from a channel to the next
  int64_t channels;                 // of the group, without padding channels
  int64_t group;                    // channels of a group, a multiple of 16
  int64_t columns;                  // vectors in the row
  int64_t lane_rows, lane_columns;  // lane_rows: grid rows that have an image row here
  int64_t width;                    // of the image; width * group <= 65536
  float* pixels;                    // [16][columns][pixel], the group's channels first; scratch where x is given
  int64_t pixel;                    // floats from a pixel to the next
  // Lists of grid row 0, and the steps to the next grid row. A list has room for width * group + 16 nonzeros.
  float* values;
  uint16_t* index;
  uint16_t* start;  // [width + 1]; the last one wraps at 65536, `count` does not
  uint32_t* count;
  int64_t list_step, start_step, count_step;
};

// Lists x weights: one row of a kernel, one group of input channels, R * 16 output channels, some pixels of a row.
struct ActiveTaps {
  const float* values;
  const uint16_t* index;
  const uint16_t* start;
  uint32_t total;  // nonzeros in the list
  int64_t width;
  const float* weights;  // [kernel columns][group][R * 16]
  int64_t group, kernel_columns;
  int64_t first, step;  // input column of the first pixel (may be negative), and the step to the next pixel
  int64_t count;        // pixels
  float* sums;          // [count][R * 16], added to
};

// sums[p][i] = activation(sums[p][i] + bias[i]): pixels, channels in lanes. theta and bias from channel 0, or null.
struct ActivePixels {
  float* sums;
  int64_t pixels, width;  // width: floats of a pixel, a multiple of 16
  int64_t channels;       // channels with a bias and a theta; the rest become 0
  const float* bias;
  const float* theta;
  const Activation* activation;
};

// Sums -> planes: a vector row of R * 16 output channels.
struct ActiveEpilogue {
  const float* sums;  // [lanes][columns][width]
  int64_t lanes, columns, width;
  int64_t channel, channels;  // output channels [channel, channel + channels)
  const TileOut* out;         // of vector 0 of the row
};

// Linear layers on the nonzeros of one input vector. Dense weights: sums[R * 16] = nonzeros x weights [inputs][R * 16].
struct ActiveVector {
  const float* values;
  const int32_t* index;
  int64_t count;
  const float* weights;
  float* sums;
};

// Sparse weights by input: [start[i], start[i + 1]) of two streams belong to input i. Added to sums[rows[n]].
struct ActiveColumns {
  const float* values;
  const int32_t* index;
  int64_t count;
  const uint32_t* start;
  const uint16_t* rows;
  const float* weights;
  float* sums;
};

inline constexpr int kActiveSums = 8, kActiveVectorSums = 16;  // R is 1, 2, 4, 8; also 16 for vectors

struct ActiveKernels {
  void (*lists)(const ActiveLists&);
  void (*taps[kActiveSums + 1])(const ActiveTaps&);
  void (*pixels)(const ActivePixels&);
  void (*end)(const ActiveEpilogue&);
  // Nonzeros of x [count], in order; values and index have room for count + 16.
  int64_t (*compress)(const float* x, int64_t count, float* values, int32_t* index);
  void (*vector[kActiveVectorSums + 1])(const ActiveVector&);
  void (*columns)(const ActiveColumns&);
  // y[i] = activation(bias[i] + sums[i]), i < count; theta and bias from the first one, or null.
  void (*finish)(const float* sums, const float* bias, const float* theta, const Activation& activation, float* y,
                 int64_t count);
};

}  // namespace secateur::cpu
