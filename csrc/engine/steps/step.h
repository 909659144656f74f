// A step of a plan: one layer of one image (or of the whole batch, for rows), cut into tasks that may run at once.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/engine.h"
#include "engine/layout/layout.h"
#include "engine/program/program.h"

namespace secateur::engine {

// A planes value in the arena of an image.
struct Store {
  int64_t channels = 0;
  Layout layout;
  std::vector<uint16_t> valid;  // see valid_lanes
  FrameFill fill;
  float fill_value = 0;  // what lies beyond the image: 0, or -inf for a maximum
  int64_t offset = 0;    // floats from the arena's start to vector (0, 0) of plane 0
  bool bytes = false;    // quads of channels (cpu/quads.h); otherwise a plane is a channel
  float scale = 1;       // of bytes
  int32_t zero_point = 0;
  // Channels [first_channel, first_channel + channels) of another store, or on its own (-1).
  int parent = -1;
  int64_t first_channel = 0;
  int64_t begin = INT64_MAX, end = -1;  // steps between which it must be kept

  int64_t planes() const { return bytes ? (channels + 3) / 4 : channels; }
  int64_t plane_floats() const { return layout.plane() * kLanes; }
  float* channel(float* arena, int64_t plane) const { return arena + offset + plane * plane_floats(); }
  uint8_t* plane_bytes(float* arena, int64_t plane) const { return reinterpret_cast<uint8_t*>(channel(arena, plane)); }
  // A lane beyond the image: 32 bits, on their way as a float.
  float fill_lane() const {
    if (!bytes) return fill_value;
    return std::bit_cast<float>(fill_value == 0 ? 0x01010101u * static_cast<uint32_t>(zero_point) : 0u);
  }
  const uint16_t* valid_data() const { return valid.empty() ? nullptr : valid.data(); }
  // Row r of the blocks: which of its lanes are pixels (null: all), and where it begins in a plane.
  const uint16_t* valid_row(int64_t r) const {
    return valid.empty() ? nullptr : valid.data() + r * layout.blocks.columns;
  }
  float* channel_row(float* arena, int64_t plane, int64_t r) const {
    return channel(arena, plane) + r * layout.pitch() * kLanes;
  }
  uint8_t* row_bytes(float* arena, int64_t plane, int64_t r) const {
    return reinterpret_cast<uint8_t*>(channel_row(arena, plane, r));
  }
  void fill_frames(const cpu::EngineKernels& k, float* arena, int64_t c0, int64_t c1) const {
    if (fill.copies.empty()) return;
    for (int64_t c = c0; c < c1; ++c)
      k.frame(channel(arena, c), fill.copies.data(), static_cast<int64_t>(fill.copies.size()), fill.perms.data(),
              fill_lane());
  }
};

// What one call of the operator brings.
struct Call {
  int64_t batch = 0;
  std::vector<const float*> inputs;  // by input of the program, contiguous
  std::vector<float*> outputs;       // by output of the program, contiguous
  std::vector<float*> rows;          // by value: [N][F], null for planes
};

// What a thread works with: the arena of the image at hand, and scratch of its own.
struct Worker {
  float* arena;
  float* scratch;
};

using StepReport = ProgramStep;

class Step {
 public:
  explicit Step(std::string name) : name_(std::move(name)) {}
  virtual ~Step() = default;
  const std::string& name() const { return name_; }

  // Tasks may run in any order, on any thread; together they are the step, for images [image, image + count).
  // Planes steps work on one image at a time.
  virtual int64_t tasks() const { return 1; }
  virtual void run(const Call& call, const Worker& worker, int64_t image, int64_t count, int64_t task) const = 0;
  // All tasks, on one thread.
  virtual void run_all(const Call& call, const Worker& worker, int64_t image, int64_t count) const {
    for (int64_t t = 0; t < tasks(); ++t) run(call, worker, image, count, t);
  }
  virtual int64_t scratch_floats(int64_t /*count*/) const { return 0; }
  virtual StepReport report() const = 0;

 private:
  std::string name_;
};

using Steps = std::vector<std::unique_ptr<Step>>;

// A step that writes planes and their frames.
class FramedStep : public Step {
 public:
  using Step::Step;
  // Whether the frame is left for a step of its own (but by run_all), since no task has a whole plane.
  virtual bool leaves_frame() const = 0;
};

// Into how many tasks a step is cut where it can be: as many as there are cores, whatever the number of threads that a
// call brings, so that one plan serves them all.
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
