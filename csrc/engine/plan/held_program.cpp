#include "held_program.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "registry.h"

namespace secateur::engine {
namespace {

constexpr size_t kPlans = 6;  // kept at a time

}  // namespace

HeldProgram::HeldProgram(Program program) : program_(std::move(program)) {
  if (!program_.finished()) refuse("plan", "the program is not finished");
}
HeldProgram::~HeldProgram() = default;

std::shared_ptr<Plan> HeldProgram::plan(const std::vector<std::array<int64_t, 2>>& sizes, double budget,
                                        const std::vector<const float*>& example, Kernels kernels) {
  const auto& inputs = program_.inputs();
  const auto images = std::count_if(inputs.begin(), inputs.end(), [&](int v) { return program_.values()[v].planes(); });
  if (static_cast<int64_t>(sizes.size()) != images)
    refuse("plan", "sizes must be one for each input of planes, ", images, ", got ", sizes.size());
  if (!example.empty() && example.size() != inputs.size())
    refuse("plan", "example must be one image for each input, ", inputs.size(), ", got ", example.size());
  const std::lock_guard lock(mutex_);
  const int isa = 2 * static_cast<int>(cpu::current_isa()) + cpu::dot_allowed();
  for (size_t i = 0; i < plans_.size(); ++i)
    if (plans_[i].sizes == sizes && plans_[i].isa == isa) {
      std::rotate(plans_.begin(), plans_.begin() + static_cast<ptrdiff_t>(i),
                  plans_.begin() + static_cast<ptrdiff_t>(i) + 1);
      return plans_.front().plan;
    }
  auto made = std::make_shared<Plan>(program_, sizes, cpu::kernels().engine, cpu::int8_kernels(), kernels);
  made->choose(budget, example, kernels, active_);
  plans_.insert(plans_.begin(), {sizes, isa, made});
  if (plans_.size() > kPlans) plans_.pop_back();
  return made;
}

void HeldProgram::prepare(const std::vector<std::array<int64_t, 2>>& sizes, double budget,
                          const std::vector<const float*>& example, Kernels kernels) {
  plan(sizes, std::max(budget, 0.0), example, kernels);
}

std::vector<StepReport> HeldProgram::describe(const std::vector<std::array<int64_t, 2>>& sizes) {
  return plan(sizes, -1)->report();
}

int64_t register_program(std::shared_ptr<HeldProgram> program) {
  return Registry<HeldProgram>::instance().hold(std::move(program));
}
void release_program(int64_t id) { Registry<HeldProgram>::instance().release(id); }
std::shared_ptr<HeldProgram> find_program(int64_t id) { return Registry<HeldProgram>::instance().find(id); }
void lock_programs() { Registry<HeldProgram>::instance().lock_all(); }
void unlock_programs() { Registry<HeldProgram>::instance().unlock_all(); }

}  // namespace secateur::engine
