# Which file gets which flags. Nothing is ever compiled for "this machine": the choice is made at run time.
#
# -ffp-contract=off: a*b+c is fused only where a kernel says so, so sums are the same on every instruction set.
# -fno-exceptions: kernel files never throw. GCC 12 warns of GCC's own AVX-512 intrinsics (gcc.gnu.org/PR105593).
set(SECATEUR_KERNEL_FLAGS -ffp-contract=off -fno-math-errno -fno-exceptions)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(SECATEUR_ISAS scalar avx2 avx512)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(SECATEUR_ISAS scalar neon)
else()
  set(SECATEUR_ISAS scalar)
endif()

set(SECATEUR_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt)
set(SECATEUR_ISA_FLAGS_avx512 ${SECATEUR_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
                              -mprefer-vector-width=512)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  list(APPEND SECATEUR_ISA_FLAGS_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

# GCC's -O3 unrolls the scalar loops over sixteen lanes for minutes. For AArch64, where NEON runs, GCC 12 vectorizes
# clamps wrongly at -O2: test_kernels engine_int8 sees it.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT SECATEUR_SANITIZE)
  set(SECATEUR_ISA_FLAGS_scalar -O2)
  if("neon" IN_LIST SECATEUR_ISAS)
    list(APPEND SECATEUR_ISA_FLAGS_scalar -fno-tree-vectorize)
  endif()
endif()

# Products of four bytes: of their own, for some CPUs have an instruction set without them.
set(SECATEUR_DOTS_avx2 avx2_vnni)
set(SECATEUR_DOTS_avx512 avx512_vnni)
set(SECATEUR_DOTS_neon neon_dot)
set(SECATEUR_ISA_FLAGS_avx2_vnni ${SECATEUR_ISA_FLAGS_avx2} -mavxvnni)
set(SECATEUR_ISA_FLAGS_avx512_vnni ${SECATEUR_ISA_FLAGS_avx512} -mavx512vnni)
set(SECATEUR_ISA_FLAGS_neon_dot -march=armv8.2-a+dotprod)

# The kernels as an object library: no torch, no Python; tests link it too.
function(secateur_add_kernels target source_dir)
  set(sources ${source_dir}/cpu/dispatch.cpp)
  foreach(isa ${SECATEUR_ISAS})
    set(file ${source_dir}/cpu/isa_${isa}.cpp)
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${SECATEUR_KERNEL_FLAGS};${SECATEUR_ISA_FLAGS_${isa}}")
    list(APPEND sources ${file})
    foreach(form ${isa} ${SECATEUR_DOTS_${isa}})
      set(file ${source_dir}/cpu/int8_${form}.cpp)
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${SECATEUR_KERNEL_FLAGS};${SECATEUR_ISA_FLAGS_${form}}")
      list(APPEND sources ${file})
    endforeach()
  endforeach()
  add_library(${target} OBJECT ${sources})
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
endfunction()
