// A registered program: makes plans, and keeps the last few of them and what was measured for the next ones.
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
  explicit HeldProgram(Program program);  // must be finished
  HeldProgram(const HeldProgram&) = delete;
  HeldProgram& operator=(const HeldProgram&) = delete;
  ~HeldProgram();

  const Program& program() const { return program_; }

  // The plan for these sizes (height, width) of the planes inputs; made on first use, the last few are kept.
  // budget: seconds for measuring candidates; negative: the choices of an earlier plan, or the cost model.
  // example: a contiguous image for each input, or empty; measurements on it are kept for other sizes.
  // Throws Unplannable if these sizes have no plan.
  std::shared_ptr<Plan> plan(const std::vector<std::array<int64_t, 2>>& sizes, double budget,
                             const std::vector<const float*>& example = {}, Kernels kernels = Kernels::kFastest);
  // prepare chooses kernels for these image sizes within `budget` seconds; describe reports the choices.
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
  std::mutex mutex_;  // guards the members below
  std::vector<Cached> plans_;
  std::map<const ConvAttributes*, ActiveChoice> active_;  // chosen on an example
};

// Ids start at 1 and are never reused.
SECATEUR_EXPORT int64_t register_program(std::shared_ptr<HeldProgram> program);
SECATEUR_EXPORT void release_program(int64_t id);
std::shared_ptr<HeldProgram> find_program(int64_t id);

// Around a fork (ops/fork_locks.cpp): no plan is made until they are unlocked.
void lock_programs();
void unlock_programs();

}  // namespace secateur::engine
