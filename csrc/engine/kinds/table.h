// All kinds of operations. A new kind is a new file here and a line in table.cpp.
#pragma once

#include <span>
#include <string_view>

#include "engine/plan/plan_builder.h"
#include "engine/plan/planned_kind.h"
#include "engine/plan/step_maker.h"

namespace secateur::engine {

SECATEUR_EXPORT std::span<const PlannedKind> kinds();
SECATEUR_EXPORT const PlannedKind* find_kind(std::string_view name);  // null if there is none
const PlannedKind& kind_named(std::string_view name);                 // must exist

}  // namespace secateur::engine
