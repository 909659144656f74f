// Decisions of the plan builder: operations over stores, in order, and the stores.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/layout/store.h"

namespace secateur::engine {

enum class RecordKind { kPack, kUnpack, kRepack, kCopy, kOp };

struct Record {
  RecordKind kind;
  int op = -1;  // of the program
  int x = -1, y = -1, other = -1;
  int rows = -1;      // value, for a broadcast
  int port = -1;      // input or output of the program
  int64_t first = 0;  // kCopy: first channel of y
};

struct Records {
  std::vector<Record> records;
  std::vector<Store> stores;
  std::vector<int64_t> features;               // by value: F of rows
  std::vector<std::array<int64_t, 3>> shapes;  // by value: C, H, W of planes
  std::vector<bool> in_image;                  // by op: rows that planes depend on, so they run image by image
};

}  // namespace secateur::engine
