// A planner for tests: picks among everything that is legal at random and times nothing.
//
// Which kernel is fastest is a measurement, so two runs of one test may take different kernels, and most candidates
// never run. Under SECATEUR_PLANNER=random or random:SEED the plan of every program takes random ones. What is drawn
// depends on the seed and on the layer alone, so a failure comes back with its seed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace secateur::engine {

inline constexpr const char* kAtRandom = "chosen at random";  // a report's why

// Numbers of one layer.
class Draws {
 public:
  explicit Draws(uint64_t state) : state_(state) {}
  size_t below(size_t n);
  template <class T>
  const T& one_of(const std::vector<T>& all) {
    return all[below(all.size())];
  }

 private:
  uint64_t state_;
};

class RandomPlanner {
 public:
  explicit RandomPlanner(uint64_t seed) : seed_(seed) {}
  // What SECATEUR_PLANNER asks for; nothing where it is unset or empty. Anything else than the two forms throws.
  static std::optional<RandomPlanner> from_environment();

  // numbers: what tells a layer from others of its name.
  Draws draws(const std::string& layer, const std::vector<int64_t>& numbers) const;

 private:
  uint64_t seed_;
};

}  // namespace secateur::engine
