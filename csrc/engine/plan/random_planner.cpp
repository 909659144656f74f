#include "random_planner.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "engine/program/refuse.h"

namespace secateur::engine {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): well mixed bits from every state, also from neighbouring ones.
uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

size_t Draws::below(size_t n) {
  state_ += 0x9e3779b97f4a7c15u;
  return static_cast<size_t>(mixed(state_) % n);
}

std::optional<RandomPlanner> RandomPlanner::from_environment() {
  const char* value = std::getenv("SECATEUR_PLANNER");
  const std::string_view text = value ? value : "";
  if (text.empty()) return std::nullopt;
  constexpr std::string_view name = "random";
  uint64_t seed = 0;
  if (text == name) return RandomPlanner(seed);
  if (text.substr(0, name.size() + 1) == "random:") {
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + name.size() + 1, end, seed);
    if (error == std::errc() && stop == end) return RandomPlanner(seed);
  }
  refuse("plan", "SECATEUR_PLANNER must be \"random\" or \"random:SEED\", got \"", std::string(text), "\"");
}

Draws RandomPlanner::draws(const std::string& layer, const std::vector<int64_t>& numbers) const {
  uint64_t state = mixed(seed_ + 1);
  const auto add = [&](uint64_t part) { state = mixed(state * 31 + part + 1); };
  for (unsigned char letter : layer) add(letter);
  for (int64_t n : numbers) add(static_cast<uint64_t>(n));
  return Draws(state);
}

}  // namespace secateur::engine
