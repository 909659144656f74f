#pragma once

#include <chrono>

namespace secateur::engine {

inline double now() {  // seconds
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace secateur::engine
