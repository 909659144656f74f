// Errors that refuse a program or its plan: one form of message, two types.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#define SECATEUR_EXPORT __attribute__((visibility("default")))

namespace secateur::engine {

// This program has no plan for these image sizes. The program is right, and another size may have a plan. torch can
// compute these calls; any other error is the caller's mistake or a bug.
class SECATEUR_EXPORT Unplannable : public std::length_error {
 public:
  using std::length_error::length_error;
};

inline std::string shown(const char* text) { return text; }
inline std::string shown(const std::string& text) { return text; }
inline std::string shown(float x) {  // std::to_string has only six decimals
  char text[32];
  std::snprintf(text, sizeof text, "%g", static_cast<double>(x));
  return text;
}
template <class Number>
std::string shown(Number x) {
  return std::to_string(x);
}

template <class... Parts>
std::string refusal(const std::string& op, const Parts&... parts) {
  return "engine: " + op + ": " + (shown(parts) + ...);
}

// Refuses the program. `op` is an operation's name; the parts are joined to the message.
template <class... Parts>
[[noreturn]] void refuse(const std::string& op, const Parts&... parts) {
  throw std::invalid_argument(refusal(op, parts...));
}

// Refuses the image size.
template <class... Parts>
[[noreturn]] void unplannable(const std::string& op, const Parts&... parts) {
  throw Unplannable(refusal(op, parts...));
}

inline void check_count(const std::string& op, const char* attribute, size_t got, int64_t want) {
  if (static_cast<int64_t>(got) != want) refuse(op, attribute, " must have ", want, " elements, got ", got);
}

inline std::string size_of(int64_t height, int64_t width) {
  return std::to_string(height) + "x" + std::to_string(width);
}

}  // namespace secateur::engine
