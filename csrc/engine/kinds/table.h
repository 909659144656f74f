// Every kind of operation that the engine has. A new one is a file beside this one, and a line in table.cpp.
#pragma once

#include <span>
#include <string_view>

#include "engine/plan/planned_kind.h"

namespace secateur::engine {

SECATEUR_EXPORT std::span<const PlannedKind> kinds();
SECATEUR_EXPORT const PlannedKind* find_kind(std::string_view name);  // null where there is none
const PlannedKind& kind_named(std::string_view name);                 // which there is

}  // namespace secateur::engine
