// The attributes of kinds whose steps are in steps/. A kind whose step is in its own file declares them there.
#pragma once

#include "attributes.h"
#include "cpu/int8.h"

namespace secateur::engine {

struct Window {  // rows first
  Pair kernel{1, 1}, stride{1, 1}, dilation{1, 1};
  Sides padding{0, 0, 0, 0};
};

struct ConvAttributes : AttributesOf<ConvAttributes> {
  std::shared_ptr<const Weights> weights;  // [K, C / groups, R, S]
  std::vector<float> bias;                 // [K] or empty
  Window window;                           // kernel: that of the weights
  int64_t groups = 1;
  Activation activation;
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    f("groups", a.groups);
    f("weight", a.weights, kRequired);
    f("bias", a.bias);
    f("stride", a.window.stride);
    f("padding", a.window.padding);
    f("dilation", a.window.dilation);
    f("act", a.activation);
  }
};

struct LinearAttributes : AttributesOf<LinearAttributes> {
  std::shared_ptr<const Weights> weights;  // [K, F]
  std::vector<float> bias;                 // [K] or empty
  Activation activation;
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    f("weight", a.weights, kRequired);
    f("bias", a.bias);
    f("act", a.activation);
  }
};

// The epilogue of an int8 layer as kernels read it, derived from its attributes (int8_layer.h): by output channel,
// padded to a multiple of four.
struct Int8EpilogueTerms {
  std::vector<int32_t> bias;
  std::vector<float> multiplier;
  std::vector<uint8_t> theta;  // or empty
  bool wide = false;
};

struct Int8Layer {
  std::shared_ptr<const ByteWeights> bytes;
  std::vector<int32_t> bias;      // [K]
  std::vector<float> multiplier;  // [K]
  float residual_multiplier = 0;
  std::optional<Quant> quant;  // of an int8 output
  Limits limits;
  std::vector<uint8_t> theta;  // [K] or empty
  Activation activation;       // of a float output
  Int8EpilogueTerms terms;     // derived
  cpu::Int8Epilogue epilogue(int32_t residual_zero_point) const;

  template <class Self, class F>
  static void each_of_layer(Self& a, F&& f) {
    f("weight", a.bytes, kRequired);
    f("bias", a.bias, kRequired);
    f("multiplier", a.multiplier, kRequired);
    f("grid", a.quant);
    f("limits", a.limits);
    f("theta", a.theta);
    f("act", a.activation);
  }
};

struct Int8ConvAttributes : AttributesOf<Int8ConvAttributes>, Int8Layer {  // weights as ConvAttributes has them
  Window window;
  int64_t groups = 1;
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    f("groups", a.groups);
    each_of_layer(a, f);
    f("residual_multiplier", a.residual_multiplier);
    f("stride", a.window.stride);
    f("padding", a.window.padding);
    f("dilation", a.window.dilation);
  }
};

struct Int8LinearAttributes : AttributesOf<Int8LinearAttributes>, Int8Layer {
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    each_of_layer(a, f);
  }
};

struct MaxPoolAttributes : AttributesOf<MaxPoolAttributes> {
  Window window;
  bool ceil_mode = false;
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    f("kernel", a.window.kernel, kRequired);
    f("stride", a.window.stride);
    f("padding", a.window.padding);
    f("dilation", a.window.dilation);
    f("ceil_mode", a.ceil_mode);
  }
};

struct AvgPoolAttributes : AttributesOf<AvgPoolAttributes> {
  Window window;
  bool ceil_mode = false, count_include_pad = true;
  int64_t divisor = 0;         // 0: places in the window
  std::optional<Quant> quant;  // of an int8 output; absent: that of the input
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    f("kernel", a.window.kernel, kRequired);
    f("stride", a.window.stride);
    f("padding", a.window.padding);
    f("ceil_mode", a.ceil_mode);
    f("count_include_pad", a.count_include_pad);
    f("divisor", a.divisor);
    f("grid", a.quant);
  }
};

struct GlobalPoolAttributes : AttributesOf<GlobalPoolAttributes> {
  std::optional<Quant> quant;  // of an int8 output
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    f("grid", a.quant);
  }
};

// y = act(join(x * scale + shift, other))
struct MapAttributes : AttributesOf<MapAttributes> {
  std::vector<float> scale, shift;  // [C] or empty
  cpu::Binary join = cpu::Binary::kNone;
  Activation activation;
  std::optional<Quant> quant;  // of an int8 output
  std::vector<uint8_t> theta;  // [C] or empty: thresholds on those bytes
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    f("scale", a.scale);
    f("shift", a.shift);
    f("join", a.join);
    f("act", a.activation);
    f("grid", a.quant);
    f("theta", a.theta);
  }
};

struct QuantizeAttributes : AttributesOf<QuantizeAttributes> {
  std::optional<Quant> quant;
  std::vector<uint8_t> theta;  // [C] or empty
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    f("grid", a.quant, kRequired);
    f("theta", a.theta);
  }
};

struct SelectAttributes : AttributesOf<SelectAttributes> {
  std::vector<int64_t> index;  // channel i of the output is channel index[i] of the input
  template <class Self, class F>
  static void each(Self& a, F&& f) {
    f("index", a.index, kRequired);
  }
};

}  // namespace secateur::engine
