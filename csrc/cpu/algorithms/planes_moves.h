// Moves rows of an image into the lanes of vectors, and back.
#pragma once

#include "cpu/engine.h"

namespace secateur::cpu {
namespace {

inline void interleave(float* to, const float* const* lanes, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    f32x16 v[16];
    for (int l = 0; l < 16; ++l) v[l] = load(lanes[l] + i);
    transpose(v);
    for (int j = 0; j < 16; ++j) store(to + 16 * (i + j), v[j]);
  }
  if (const int rest = static_cast<int>(count - i); rest > 0) {
    f32x16 v[16];
    for (int l = 0; l < 16; ++l) v[l] = load_first(lanes[l] + i, rest);
    transpose(v);
    for (int j = 0; j < rest; ++j) store(to + 16 * (i + j), v[j]);
  }
}

inline void deinterleave(float* const* lanes, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    f32x16 v[16];
    for (int j = 0; j < 16; ++j) v[j] = load(from + 16 * (i + j));
    transpose(v);
    for (int l = 0; l < 16; ++l) store(lanes[l] + i, v[l]);
  }
  if (const int rest = static_cast<int>(count - i); rest > 0) {
    f32x16 v[16];
    for (int j = 0; j < 16; ++j) v[j] = j < rest ? load(from + 16 * (i + j)) : splat(0.0f);
    transpose(v);
    for (int l = 0; l < 16; ++l) store_first(lanes[l] + i, v[l], rest);
  }
}

}  // namespace
}  // namespace secateur::cpu
