// A program as complete text: every attribute of every operation, every weight. Equal programs have equal text.
#pragma once

#include <string>

#include "program.h"

namespace secateur::engine {

SECATEUR_EXPORT std::string text_of(const Program& program);

}  // namespace secateur::engine
