// Chooses the instruction set: the best one that this CPU has, or the forced one.
#pragma once

#include "int8.h"
#include "kernels.h"

namespace secateur::cpu {

// Exported from libsecateur (everything else is hidden).
#define SECATEUR_EXPORT __attribute__((visibility("default")))

enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kNeon = 3 };
inline constexpr int kIsaCount = 4;

SECATEUR_EXPORT const char* isa_name(Isa isa);
SECATEUR_EXPORT bool isa_available(Isa isa);  // compiled in and supported by this CPU

SECATEUR_EXPORT Isa current_isa();
SECATEUR_EXPORT void force_isa(Isa isa);  // must be available
SECATEUR_EXPORT void reset_isa();         // back to the best one

SECATEUR_EXPORT const Kernels& kernels();  // the current table

// The int8 kernels of the current instruction set: with a product of four bytes (VNNI, SDOT) if this CPU has it and it
// is not switched off.
SECATEUR_EXPORT const Int8Kernels& int8_kernels();
SECATEUR_EXPORT bool dot_available(Isa isa);
SECATEUR_EXPORT void allow_dot(bool allowed);
SECATEUR_EXPORT bool dot_allowed();

}  // namespace secateur::cpu
