// Runs every kernel on every instruction set that this CPU has, against plain loops; or the tests of these names.
#include <cstdio>
#include <cstring>
#include <exception>

#include "cpu/dispatch.h"
#include "testing.h"

using namespace secateur;
using namespace secateur::test;

namespace {

struct Test {
  const char* name;
  void (*run)(const Kernels& kernels);
};

// One row for each operator, in a file of its own name.
constexpr Test tests[] = {
    {"engine_program", test_engine_program},  // how threads meet: the others are one kernel each
    {"engine_data", test_engine_data},        // programs as data
    {"engine_dense", test_engine_dense},
    {"engine_linear", test_engine_linear},
    {"engine_active", test_engine_active},
    {"engine_int8", test_engine_int8},
    {"engine_int8_rows", test_engine_int8_rows},
    {"engine_rows", test_engine_rows},
    {"engine_sparse", test_engine_sparse},
    {"mask_apply", test_mask_apply},
    {"mask_bits", test_mask_bits},
    {"int16_safe", test_int16_safe},
    {"random_planner", test_random_planner},
    {"sparse_conv2d", test_sparse_conv2d},
    {"sparse_dot", test_sparse_dot},
    {"sparse_tile", test_sparse_tile},
    {"statistics_threshold", test_statistics_threshold},
    {"streams", test_streams},
    {"threshold_relu", test_threshold_relu},
};

int passed = 0, failed = 0;

template <class Body>
void run(const char* where, const char* name, const Body& body) {
  checks = 0;
  try {
    body();
    ++passed;
    std::printf("%-8s %-24s ok, %lld checks\n", where, name, static_cast<long long>(checks));
  } catch (const std::exception& error) {
    ++failed;
    std::printf("%-8s %-24s FAILED: %s\n", where, name, error.what());
  }
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** names) {
  auto wanted = [&](const char* name) {
    for (int i = 1; i < count; ++i)
      if (std::strcmp(names[i], name) == 0) return true;
    return count == 1;
  };
  if (wanted("dispatch")) run("any", "dispatch", test_dispatch);
  for (int i = 0; i < cpu::kIsaCount; ++i) {
    const cpu::Isa isa = static_cast<cpu::Isa>(i);
    if (!cpu::isa_available(isa)) {
      std::printf("%-8s not on this CPU\n", cpu::isa_name(isa));
      continue;
    }
    cpu::force_isa(isa);
    for (const Test& test : tests)
      if (wanted(test.name)) run(cpu::kernels().name, test.name, [&] { test.run(cpu::kernels()); });
  }
  cpu::reset_isa();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0 || passed == 0;
}
