// A program that operators know by number: it makes plans, keeps the last few, and what it has learnt for the next.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "plan.h"

namespace secateur::engine {

class SECATEUR_EXPORT HeldProgram {
 public:
  explicit HeldProgram(Program program);  // finished
  HeldProgram(const HeldProgram&) = delete;
  HeldProgram& operator=(const HeldProgram&) = delete;
  ~HeldProgram();

  const Program& program() const { return program_; }

  // The plan for these sizes (height, width) of the planes inputs; made on first use, the last few are kept.
  // budget: seconds for measuring candidates; negative: what an earlier plan chose, or the cost model.
  // example: an image for each input, contiguous, or empty; what is measured on it is kept for other sizes.
  // Throws Unplannable where these sizes have none.
  std::shared_ptr<Plan> plan(const std::vector<std::array<int64_t, 2>>& sizes, double budget,
                             const std::vector<const float*>& example = {}, Kernels kernels = Kernels::kFastest);
  // For these image sizes: choose kernels within `budget` seconds; what was chosen.
  void prepare(const std::vector<std::array<int64_t, 2>>& sizes, double budget,
               const std::vector<const float*>& example = {}, Kernels kernels = Kernels::kFastest);
  std::vector<StepReport> describe(const std::vector<std::array<int64_t, 2>>& sizes);

  std::mutex& mutex() { return mutex_; }

 private:
  struct Cached {
    std::vector<std::array<int64_t, 2>> sizes;
    int isa;
    std::shared_ptr<Plan> plan;
  };

  const Program program_;
  std::mutex mutex_;  // of what follows
  std::vector<Cached> plans_;
  std::map<const ConvAttributes*, ActiveChoice> active_;  // chosen on an example
};

// Ids start at 1 and are never given again.
SECATEUR_EXPORT int64_t register_program(std::shared_ptr<HeldProgram> program);
SECATEUR_EXPORT void release_program(int64_t id);
std::shared_ptr<HeldProgram> find_program(int64_t id);

// For whoever forks (ops/fork_locks.cpp): until they are unlocked nobody makes a plan.
void lock_programs();
void unlock_programs();

}  // namespace secateur::engine
