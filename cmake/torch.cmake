# Torch's stable headers and libtorch_cpu, taken directly: find_package(Torch) on a CUDA wheel demands a full CUDA
# toolkit even of a library that has no CUDA in it.
if(NOT SECATEUR_TORCH_DIR)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE SECATEUR_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "torch was not found by ${Python_EXECUTABLE}: install torch >= 2.10 first")
  endif()
endif()
if(NOT EXISTS ${SECATEUR_TORCH_DIR}/include/torch/csrc/stable/library.h)
  message(FATAL_ERROR "${SECATEUR_TORCH_DIR} has no stable ABI headers: secateur needs torch >= 2.10")
endif()

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE ${SECATEUR_TORCH_DIR}/include)
target_link_libraries(torch_stable INTERFACE ${SECATEUR_TORCH_DIR}/lib/libtorch_cpu.so)
# Held to torch 2.10: one binary serves every torch from 2.10 on.
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
