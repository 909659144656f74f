# libsecateur_cuda: the operators on CUDA. SECATEUR_CUDA = AUTO builds it where a usable nvcc is found and says why where
# not; ON insists; OFF does not look. Machines without nvcc pay one find_program.
#
# Linked to neither libtorch_cuda nor libc10_cuda, and to its own static CUDA runtime: it loads wherever torch loads, and
# no CUDA package decides whether it does.
set(SECATEUR_CUDA_MINIMUM 12.0)  # torch >= 2.10 comes with CUDA 12.6 or newer; sm_90 needs 11.8

function(secateur_no_cuda why)
  if(SECATEUR_CUDA STREQUAL "AUTO")
    message(STATUS "secateur: no CUDA library: ${why}")
  else()
    message(FATAL_ERROR "secateur: SECATEUR_CUDA=${SECATEUR_CUDA}, but ${why}")
  endif()
endfunction()

if(NOT SECATEUR_CUDA MATCHES "^(AUTO|ON|OFF|TRUE|FALSE|YES|NO|0|1)$")
  message(FATAL_ERROR "secateur: SECATEUR_CUDA must be AUTO, ON or OFF, got \"${SECATEUR_CUDA}\"")
endif()
if(NOT SECATEUR_CUDA STREQUAL "AUTO" AND NOT SECATEUR_CUDA)
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  find_program(SECATEUR_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH ENV CUDAToolkit_ROOT
               PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT SECATEUR_NVCC AND NOT DEFINED ENV{CUDACXX})
    secateur_no_cuda("nvcc was not found")
    return()
  endif()
  if(SECATEUR_NVCC AND NOT DEFINED ENV{CUDACXX})
    set(ENV{CUDACXX} "${SECATEUR_NVCC}")
  endif()
  # Compiles a small program with nvcc and the host compiler, in a project of its own: a failure is an answer here.
  unset(CMAKE_CUDA_COMPILER CACHE)  # an earlier configure's "not found"
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    secateur_no_cuda("$ENV{CUDACXX} does not compile a CUDA program here (CMakeFiles/CMakeConfigureLog.yaml says why)")
    return()
  endif()
endif()

execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" nvcc_version "${nvcc_version}")
if(NOT CMAKE_MATCH_1 OR CMAKE_MATCH_1 VERSION_LESS ${SECATEUR_CUDA_MINIMUM})
  secateur_no_cuda("${CMAKE_CUDA_COMPILER} is version \"${CMAKE_MATCH_1}\", and ${SECATEUR_CUDA_MINIMUM} or newer is needed")
  return()
endif()

# A100 and H100 as machine code; PTX for what comes after. Set CMAKE_CUDA_ARCHITECTURES for others.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
endif()
enable_language(CUDA)
find_package(CUDAToolkit ${SECATEUR_CUDA_MINIMUM})
if(NOT TARGET CUDA::cudart_static)
  secateur_no_cuda("the toolkit of ${CMAKE_CUDA_COMPILER} has no static runtime (libcudart_static.a)")
  return()
endif()

# Kernels: nvcc sees no torch header, so any nvcc goes with any torch.
# -fmad=false: a*b+c is fused nowhere, as on the CPU and in the emulated grid, and memory is the limit anyway.
file(GLOB kernel_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(secateur_cuda_kernels OBJECT ${kernel_sources})
target_include_directories(secateur_cuda_kernels PRIVATE csrc/cuda/device)
set_target_properties(secateur_cuda_kernels PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static POSITION_INDEPENDENT_CODE ON
  CUDA_VISIBILITY_PRESET hidden
  COMPILE_OPTIONS "-fmad=false;-Xcompiler=-Wall,-Wextra$<$<BOOL:${SECATEUR_WERROR}>:;-Werror=all-warnings>")

# Fronts: torch's stable ABI; the host compiler. The checks are those of the CPU operators, compiled in, so that neither
# library exports anything for the other.
file(GLOB front_sources CONFIGURE_DEPENDS csrc/cuda/ops/*.cpp)
add_library(secateur_cuda SHARED ${front_sources} csrc/cuda/device/stream.cpp csrc/ops/common.cpp
            csrc/ops/threads.cpp csrc/ops/transpose_bits.cpp $<TARGET_OBJECTS:secateur_cuda_kernels>)
target_include_directories(secateur_cuda PRIVATE csrc/cuda/device)
target_compile_definitions(secateur_cuda PRIVATE USE_CUDA)
target_link_libraries(secateur_cuda PRIVATE torch_stable CUDA::cudart_static ${CMAKE_DL_LIBS})
# The static runtime's own symbols stay inside: another CUDA library in the process may bring another version.
target_link_options(secateur_cuda PRIVATE -Wl,--exclude-libs,ALL)
set_target_properties(secateur_cuda PROPERTIES
  LINKER_LANGUAGE CXX CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON SKIP_BUILD_RPATH ON)
install(TARGETS secateur_cuda LIBRARY DESTINATION secateur/lib)
