// A planner for tests: chooses at random among all legal kernels and measures nothing.
//
// Measuring the fastest kernel means that two runs of one test may take different kernels, and most candidates never
// run. Under SECATEUR_PLANNER=random or random:SEED every plan chooses at random instead. The choices depend on the
// seed and on the layer alone, so a failure is reproducible from its seed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace secateur::engine {

inline constexpr const char* kAtRandom = "chosen at random";  // `why` of a report

// Random numbers of one layer.
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
  // Reads SECATEUR_PLANNER; nothing if it is unset or empty. Throws on anything but the two forms.
  static std::optional<RandomPlanner> from_environment();

  // numbers: tell layers of the same name apart.
  Draws draws(const std::string& layer, const std::vector<int64_t>& numbers) const;

 private:
  uint64_t seed_;
};

}  // namespace secateur::engine
