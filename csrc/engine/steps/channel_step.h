// Code that the steps over planes share.
#pragma once

#include <cstdio>
#include <tuple>

#include "engine/program/layers.h"
#include "step.h"

namespace secateur::engine {

inline std::string size_of(const Store& s) {
  char text[96];
  std::snprintf(text, sizeof text, "%lld at %lldx%lld", static_cast<long long>(s.channels),
                static_cast<long long>(s.layout.height), static_cast<long long>(s.layout.width));
  return text;
}

// A step whose tasks are ranges of channels (or planes of quads), or ranges of rows if supported and channels are few.
class ChannelStep : public HaloedStep {
 public:
  ChannelStep(const StepContext& context, std::string name, const char* kind, int shown)
      : HaloedStep(std::move(name)), context_(context), kind_(kind), shown_(shown) {}
  bool leaves_halo() const override { return channels() < 4 && rows() >= 8; }
  int64_t tasks() const override {
    return leaves_halo() ? std::min(rows(), work_units()) : std::clamp<int64_t>(channels() / 8, 1, work_units());
  }
  void run(const Call& call, const Worker& worker, int64_t image, int64_t, int64_t task) const override {
    const Range r = part(leaves_halo() ? rows() : channels(), task, tasks());
    if (leaves_halo()) run_rows(call, worker, image, {0, channels()}, r);
    else run_channels(call, worker, image, r.begin, r.end);
  }
  void run_all(const Call& call, const Worker& worker, int64_t image, int64_t) const override {
    run_channels(call, worker, image, 0, channels());
  }
  StepReport report() const override {
    StepReport r;
    r.name = name();
    r.kind = kind_;
    r.kernel = "planes";
    r.tile = size_of(store(shown_));
    return r;
  }

 protected:
  virtual int64_t channels() const = 0;
  virtual void run_channels(const Call&, const Worker&, int64_t image, int64_t c0, int64_t c1) const = 0;
  // Rows of the cells that tasks can be cut into; 0: unsupported, and run_rows is not called.
  virtual int64_t rows() const { return 0; }
  virtual void run_rows(const Call&, const Worker&, int64_t /*image*/, Range /*channels*/, Range /*rows*/) const {}
  const Store& store(int i) const { return context_.stores[i]; }
  const cpu::EngineKernels& kernels() const { return context_.kernels; }
  const cpu::Int8Kernels& quads() const { return context_.quads; }

 private:
  StepContext context_;
  const char* kind_;
  int shown_;
};

// Floats from an output vector's place in the input to the input of each tap of a window.
std::vector<int32_t> window_taps(const Window& w, const Layout& x);

// The multiplier of an average pool's sums: one factor, or one for each lane of each vector ([vectors][16]) if windows
// count differently. Windows count as in torch: padding if count_include_pad, never what ceil_mode adds.
std::pair<float, std::vector<float>> window_factors(const AvgPoolAttributes& pool, const Layout& x, const Layout& y);

}  // namespace secateur::engine
