// A step of a plan: one layer of one image (or of the whole batch, for rows), cut into tasks that may run concurrently.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/engine.h"
#include "cpu/int8.h"
#include "engine/layout/store.h"

namespace secateur::engine {

// Arguments of one call of the operator.
struct Call {
  int64_t batch = 0;
  std::vector<const float*> inputs;  // by input of the program, contiguous
  std::vector<float*> outputs;       // by output of the program, contiguous
  std::vector<float*> rows;          // by value: [N][F], null for planes
};

// Memory of a thread: the arena of the current image, and scratch of its own.
struct Worker {
  float* arena;
  float* scratch;
};

// A step as reports show it.
struct StepReport {
  std::string name, kind, kernel, tile, why;
  std::vector<int64_t> shape;  // of the weight; empty where there is none
  double zeros = 0;
  double ms = 0, dense_ms = 0;         // as measured when the kernel was chosen, on one thread; 0: not measured
  double input_zeros = -1;             // share of zeros of the example at a convolution's input; -1: unknown
  double active_ms = 0, other_ms = 0;  // lists of nonzeros; if they were chosen, the time of the planes
  int64_t chunk = 0;
  double multiply_adds = 0;  // vectors multiplied and added
  double floor_ms = 0;       // time of those at the rate of one core that loads from its nearest cache
};

class Step {
 public:
  explicit Step(std::string name) : name_(std::move(name)) {}
  virtual ~Step() = default;
  const std::string& name() const { return name_; }

  // Tasks may run in any order, on any thread. Together they are the step for images [image, image + count). Planes
  // steps work on one image at a time.
  virtual int64_t tasks() const { return 1; }
  virtual void run(const Call& call, const Worker& worker, int64_t image, int64_t count, int64_t task) const = 0;
  // Runs all tasks on one thread.
  virtual void run_all(const Call& call, const Worker& worker, int64_t image, int64_t count) const {
    for (int64_t t = 0; t < tasks(); ++t) run(call, worker, image, count, t);
  }
  virtual int64_t scratch_floats(int64_t /*count*/) const { return 0; }
  virtual StepReport report() const = 0;

 private:
  std::string name_;
};

using Steps = std::vector<std::unique_ptr<Step>>;

// A step that writes planes and their halos.
class HaloedStep : public Step {
 public:
  using Step::Step;
  // Whether run leaves the halo to a separate step, since no task has a whole plane. run_all fills it in any case.
  virtual bool leaves_halo() const = 0;
};

// Stores and kernels that a step uses; both outlive it.
struct StepContext {
  const std::vector<Store>& stores;
  const cpu::EngineKernels& kernels;
  const cpu::Int8Kernels& quads;
};

// Number of tasks of a step that can be cut: the number of cores, for any number of threads in a call, so that one plan
// serves them all.
inline int64_t work_units() {
  static const int64_t units = std::clamp<int64_t>(std::thread::hardware_concurrency(), 2, 32);
  return units;
}

// [begin, end) of part i of n parts of `count`.
struct Range {
  int64_t begin, end;
};
inline Range part(int64_t count, int64_t i, int64_t n) { return {count * i / n, count * (i + 1) / n}; }

}  // namespace secateur::engine
