// Quads (NC4HW4, ncnn's pack4): four neighbouring channels of a pixel as four bytes.
#pragma once

#include <cstdint>

namespace secateur::engine {

inline int64_t whole_quads(int64_t channels) { return (channels + 3) / 4; }

}  // namespace secateur::engine
