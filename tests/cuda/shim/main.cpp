// Runs the CUDA kernels' bodies over the emulated grid and compares them with plain loops. `main GROUP` runs one group
// of checks and prints how many passed; anything wrong ends the program with a message (or a sanitizer's).
#include <map>
#include <string>

#include "cases.h"

int main(int count, char** arguments) {
  const std::map<std::string, void (*)()> groups = {
      {"mask_apply", checks::mask_apply_group},
      {"mask_apply_many", checks::mask_apply_many_group},
      {"mask_bits", checks::mask_bits_group},
      {"transpose_bits", checks::transpose_bits_group},
      {"threshold_relu", checks::threshold_relu_group},
      {"statistics_threshold", checks::statistics_threshold_group},
      {"at_the_threshold", checks::at_the_threshold_group},
      {"bad_rows", checks::bad_rows_group},
      {"deterministic", checks::deterministic_group},
      {"elements", checks::elements_group},
      {"empty", checks::empty_group},
  };
  const auto found = groups.find(count > 1 ? arguments[1] : "");
  if (found == groups.end()) {
    std::fprintf(stderr, "no group of checks is called \"%s\"\n", count > 1 ? arguments[1] : "");
    return 2;
  }
  found->second();
  std::printf("%ld checks passed\n", static_cast<long>(checks::passed));
  return 0;
}
