// A planes value in the arena of an image.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "layout.h"

namespace secateur::engine {

struct Store {
  int64_t channels = 0;
  Layout layout;
  std::vector<uint16_t> valid;  // see valid_lanes
  HaloFill fill;
  float fill_value = 0;  // beyond the image: 0, or -inf for a maximum
  int64_t offset = 0;    // floats from the arena's start to vector (0, 0) of plane 0
  bool bytes = false;    // quads of channels (cpu/int8.h); otherwise a plane is a channel
  float scale = 1;       // of bytes
  int32_t zero_point = 0;
  // Channels [first_channel, first_channel + channels) of the store `parent`, or a store of its own (-1).
  int parent = -1;
  int64_t first_channel = 0;
  int64_t begin = INT64_MAX, end = -1;  // first and last step that use it

  int64_t planes() const { return bytes ? (channels + 3) / 4 : channels; }
  int64_t plane_floats() const { return layout.plane() * kLanes; }
  float* channel(float* arena, int64_t plane) const { return arena + offset + plane * plane_floats(); }
  uint8_t* plane_bytes(float* arena, int64_t plane) const { return reinterpret_cast<uint8_t*>(channel(arena, plane)); }
  // Bit pattern of a lane beyond the image, carried in a float.
  float fill_lane() const {
    if (!bytes) return fill_value;
    return std::bit_cast<float>(fill_value == 0 ? 0x01010101u * static_cast<uint32_t>(zero_point) : 0u);
  }
  const uint16_t* valid_data() const { return valid.empty() ? nullptr : valid.data(); }
  // Row r of the cells: the lanes that are pixels (null: all), and where the row begins in a plane.
  const uint16_t* valid_row(int64_t r) const {
    return valid.empty() ? nullptr : valid.data() + r * layout.cells.columns;
  }
  float* channel_row(float* arena, int64_t plane, int64_t r) const {
    return channel(arena, plane) + r * layout.pitch() * kLanes;
  }
  uint8_t* row_bytes(float* arena, int64_t plane, int64_t r) const {
    return reinterpret_cast<uint8_t*>(channel_row(arena, plane, r));
  }
  void fill_halos(const cpu::EngineKernels& k, float* arena, int64_t c0, int64_t c1) const {
    if (fill.copies.empty()) return;
    for (int64_t c = c0; c < c1; ++c)
      k.halo(channel(arena, c), fill.copies.data(), static_cast<int64_t>(fill.copies.size()), fill.perms.data(),
             fill_lane());
  }
};

}  // namespace secateur::engine
