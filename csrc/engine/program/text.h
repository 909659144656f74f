// A program as text, complete: every attribute of every operation, every weight. The same program has the same text.
#pragma once

#include <string>

#include "program.h"

namespace secateur::engine {

SECATEUR_EXPORT std::string text_of(const Program& program);

}  // namespace secateur::engine
