#include "table.h"

namespace secateur::engine {

// Each is in the file of its name or its family.
PlannedKind conv2d(), conv2d_int8();       // conv.cpp
PlannedKind linear(), linear_int8();       // linear.cpp
PlannedKind max_pool(), avg_pool();        // pool.cpp
PlannedKind global_avg_pool();             // global_pool.cpp
PlannedKind map();                         // map.cpp
PlannedKind quantize(), dequantize();      // cast.cpp
PlannedKind concat();                      // concat.cpp
PlannedKind select_channels(), flatten();  // movement.cpp

std::span<const PlannedKind> kinds() {
  static const PlannedKind all[] = {conv2d(),   conv2d_int8(),     linear(), linear_int8(), max_pool(),
                                    avg_pool(), global_avg_pool(), map(),    quantize(),    dequantize(),
                                    concat(),   select_channels(), flatten()};
  return all;
}

const PlannedKind* find_kind(std::string_view name) {
  for (const PlannedKind& kind : kinds())
    if (name == kind.name) return &kind;
  return nullptr;
}

const PlannedKind& kind_named(std::string_view name) {
  const PlannedKind* kind = find_kind(name);
  if (!kind) refuse(std::string(name), "no kind of operation has this name");
  return *kind;
}

}  // namespace secateur::engine
