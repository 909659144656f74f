// A segment of a network as the front describes it: operations over values, whatever the batch and the image size.
//
// Built once, then read-only: plans (plan.h) are made from it for each image size, and calls run a plan (run.h).
// Everything that a caller can get wrong is checked here or when a plan is made, never by a kernel.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cpu/engine.h"
#include "cpu/quads.h"
#include "weights.h"

#define SECATEUR_EXPORT __attribute__((visibility("default")))

namespace secateur::engine {

enum class ValueKind { kPlanes, kRows };  // [N, C, H, W] or [N, F]

// A byte q stands for (q - zero_point) * scale.
struct Quant {
  float scale = 1;
  int32_t zero_point = 0;
  bool operator==(const Quant&) const = default;
};

struct Value {
  ValueKind kind;
  int64_t channels;            // C or F; -1: known once the image size is
  std::optional<Quant> quant;  // bytes; otherwise real values
};

struct Activation {
  cpu::Act act = cpu::Act::kNone;
  float lo = 0, hi = 0;
  std::vector<float> theta;  // [K] for kThreshold
  cpu::Activation view() const { return {act, lo, hi, theta.empty() ? nullptr : theta.data()}; }
};

struct Op;

// How a layer of integers ends; see cpu::QuadEnd. By output channel, filled up to a multiple of four.
struct IntegerEnd {
  std::vector<int32_t> bias;
  std::vector<float> multiplier;
  uint8_t lo = 0, hi = 255;
  std::vector<uint8_t> theta;  // or empty
  float residual_multiplier = 0;
  bool wide = false;
  cpu::QuadEnd view(const Op& op, int32_t residual_zero_point) const;
};

struct Window {  // rows first
  std::array<int64_t, 2> kernel{1, 1}, stride{1, 1}, dilation{1, 1};
  std::array<int64_t, 4> padding{0, 0, 0, 0};  // top, left, bottom, right
};

enum class OpKind {
  kConv,
  kLinear,
  kMaxPool,
  kAvgPool,
  kGlobalPool,
  kMap,
  kConcat,
  kSelect,
  kFlatten,
  kQuantize,
  kDequantize
};

struct Op {
  OpKind kind;
  std::string name;
  std::vector<int> inputs;  // kConv: x, then the residual if there is one; kMap: x, then the other one
  int output = -1;

  Window window;       // kConv and pools
  int64_t groups = 1;  // kConv
  std::shared_ptr<const Weights> weights;
  std::shared_ptr<const ByteWeights> bytes;  // of a quantized layer, in place of weights
  IntegerEnd end;                            // of a quantized layer; kMap, kQuantize: theta
  std::optional<Quant> quant;                // of the output, where it is bytes
  std::vector<float> bias;                   // [K] or empty
  Activation activation;
  bool ceil_mode = false, count_include_pad = true;
  int64_t divisor = 0;
  std::vector<float> scale, shift;  // kMap, [C] or empty
  cpu::Join join = cpu::Join::kNone;
  std::vector<int64_t> index;  // kSelect

  int64_t neurons() const { return bytes ? bytes->neurons() : weights->neurons(); }
  int64_t per_neuron() const { return bytes ? bytes->per_neuron() : weights->per_neuron(); }
};

class Plan;

// How a convolution works with lists of its input's nonzeros (active_conv.h).
struct ActiveChoice {
  int64_t group = 0;      // input channels of a list; 0: planes
  int sums = 0;           // vectors of output channels in registers
  double most_dense = 0;  // share of nonzeros up to which lists pay
  bool operator==(const ActiveChoice&) const = default;
};

// One step of a plan, as reports show it.
struct ProgramStep {
  std::string name, kind, kernel, tile, why;
  std::vector<int64_t> shape;  // of the weight; empty where there is none
  double zeros = 0;
  double ms = 0, dense_ms = 0;         // as measured when the kernel was chosen, on one thread; 0: not measured
  double input_zeros = -1;             // share of zeros that the example brought to a convolution; -1: not known
  double active_ms = 0, other_ms = 0;  // lists of nonzeros; where they were chosen, what the planes would have taken
  int64_t chunk = 0;
  double multiply_adds = 0;  // vectors multiplied and added
  double floor_ms = 0;       // those, at the speed at which one core loads and multiplies from its nearest cache
};

// Which kernels convolutions may have: the fastest, or, for tests, one kind wherever it can serve.
enum class Kernels { kFastest, kPlanes, kActive, kBlocks, kSquares };

class SECATEUR_EXPORT Program {
 public:
  Program();
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  int input(ValueKind kind, int64_t channels);
  int add(Op op);  // checks it; its output
  void output(int value);
  void finish();

  const std::vector<Value>& values() const { return values_; }
  const std::vector<Op>& ops() const { return ops_; }
  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<int>& outputs() const { return outputs_; }
  bool finished() const { return finished_.load(std::memory_order_acquire); }

  // The plan for these sizes (height, width) of the planes inputs; made on first use, the last few are kept.
  // budget: seconds for measuring candidates; negative: what an earlier plan chose, or the cost model.
  // example: an image for each input, contiguous, or empty; what is measured on it is kept for other sizes.
  std::shared_ptr<Plan> plan(const std::vector<std::array<int64_t, 2>>& sizes, double budget,
                             const std::vector<const float*>& example = {}, Kernels kernels = Kernels::kFastest);

  std::mutex& mutex() { return mutex_; }

 private:
  struct Cached {
    std::vector<std::array<int64_t, 2>> sizes;
    int isa;
    std::shared_ptr<Plan> plan;
  };
  void check_value(const std::string& op, const char* argument, int value, std::optional<ValueKind> kind) const;
  void check_form(const Op& op) const;
  int new_value(ValueKind kind, int64_t channels);

  std::vector<Value> values_;
  std::vector<Op> ops_;
  std::vector<int> inputs_, outputs_;
  std::atomic<bool> finished_ = false;  // seen by threads that found the program by its id
  std::mutex mutex_;
  std::vector<Cached> plans_;
  std::map<const Op*, ActiveChoice> active_;  // chosen on an example
};

// Ids start at 1 and are never given again.
SECATEUR_EXPORT int64_t hold_program(std::shared_ptr<Program> program);
SECATEUR_EXPORT void release_program(int64_t id);
std::shared_ptr<Program> find_program(int64_t id);

// For whoever forks (ops/fork_locks.cpp): until they are unlocked nobody makes a plan.
void lock_programs();
void unlock_programs();

// For these image sizes: choose kernels within `budget` seconds; what was chosen.
SECATEUR_EXPORT void prepare_program(Program& program, const std::vector<std::array<int64_t, 2>>& sizes, double budget,
                                     const std::vector<const float*>& example = {},
                                     Kernels kernels = Kernels::kFastest);
SECATEUR_EXPORT std::vector<ProgramStep> describe_program(Program& program,
                                                          const std::vector<std::array<int64_t, 2>>& sizes);

}  // namespace secateur::engine
