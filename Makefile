# `make demo` and `make test` do all of their own set-up: a virtual environment in .venv, torch, the build tools and the
# package itself. They need Python 3.10-3.13, a C++20 compiler and PyPI, nothing else.
#
#   make demo                        prune a CNN on real digits, run it, print the table (report in out/demo)
#   make test                        the Python tests but the slowest, which `make slow-test` runs
#   make lint types native-test ...  the gates of CI, one at a time (`make help` lists them)
#
#   PYTHON=python3.12                another interpreter for .venv
#   TORCH="torch==2.13.0"            another torch
#   TORCH="torch --index-url https://download.pytorch.org/whl/cpu"     the small CPU build

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
TORCH ?= torch torchvision
OUT ?= out/demo
ARGS ?=
FUZZ_SECONDS ?= 60
SEEDS ?= 1 2

py := $(VENV)/bin/python
# Test files side by side (tests/conftest.py says how many). Their threads must not spin for one another; nor must those
# of the demo, beside whatever else runs: it would train 6 to 15 times slower.
PYTEST = OMP_WAIT_POLICY=PASSIVE $(py) -m pytest -n auto --dist loadfile --no-loadscope-reorder
export PATH := $(abspath $(VENV))/bin:$(PATH)
say = @printf '\n==> %s\n'

# Said before anything is done. Times of two cores that have nothing else to do.
ifneq (,$(filter setup demo test,$(MAKECMDGOALS)))
ifeq (,$(wildcard $(VENV)/.made-package))
$(info ==> the first time: downloads 1 to 2 minutes, compiling 2 to 5; then make demo takes about 7 minutes, make test about 7)
endif
endif

# The first interpreter that is 3.10-3.13 and can make a virtual environment.
find_python = for p in $(PYTHON) python3 python3.12 python3.11 python3.13 python3.10; do \
    if "$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
    then echo "$$p"; exit; fi; done; \
  echo "make: no Python 3.10-3.13 with venv was found: install one (Debian: python3-venv) or name it, PYTHON=/path/to/python3.12" >&2; exit 1

build_sources := CMakeLists.txt $(shell find csrc cmake -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cmake')

.PHONY: help setup demo test slow-test random-planner bench peers gpu engine-bench lint types format native-test sanitize tsan fuzz fuzz-modules emulated neon werror cuda \
  abi other-torch pythons sdist check clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- set-up: one stamp a step, so that a second run does nothing ----------------------------------------------------

$(VENV)/.made-venv:
	$(say) "virtual environment in $(VENV)"
	@python=$$($(find_python)); "$$python" --version; "$$python" -m venv $(VENV)
	@touch $@

$(VENV)/.made-torch: $(VENV)/.made-venv
	$(say) "$(TORCH) (1 to 2 minutes, the largest download: a CUDA build of torch takes some GB; TORCH=... chooses another)"
	@$(py) -m pip install $(TORCH)
	@touch $@

# The package is built inside .venv, against its torch: a build environment of its own would fetch torch again.
$(VENV)/.made-tools: $(VENV)/.made-torch
	$(say) "build tools (some seconds)"
	@$(py) -m pip install -q 'scikit-build-core>=0.10' 'pybind11>=2.13' cmake ninja
	@touch $@

$(VENV)/.made-package: $(VENV)/.made-tools pyproject.toml $(build_sources)
	$(say) "secateur: compile and install, editable (2 to 5 minutes on 2 cores; everything in build/install.log)"
	@command -v $${CXX:-c++} >/dev/null || { echo "make: no C++ compiler was found: install one that knows C++20 (Debian: g++) or name it, CXX=clang++" >&2; exit 1; }
	@$(py) -m pip install -v --no-build-isolation -e '.[demo,test]' 2>&1 | $(py) cmake/progress.py build/install.log
	@$(py) -c 'import secateur.cpu as c; print("secateur runs on", *c.available_isas())'
	@touch $@

# Asked of the package that is already here, so only what the extra names is fetched.
$(VENV)/.made-lint: $(VENV)/.made-package
	$(say) "linters"
	@$(py) -m pip install -q 'secateur[lint]'
	@touch $@

setup: $(VENV)/.made-package ## everything that demo and test need

# ---- the two commands of the README ---------------------------------------------------------------------------------

demo: setup ## prune the tutorial's CNN on real digits and run it faster (ARGS="--data mnist")
	$(say) "secateur demo (about 7 minutes on 2 cores)"
	OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/secateur demo --out $(OUT) $(ARGS)

test: setup ## the Python tests (ARGS="tests/pruning/test_prune.py -k name")
	$(say) "tests (all of them: about 7 minutes on 2 cores)"
	$(PYTEST) -m 'not slow' $(ARGS)

slow-test: setup ## the Python tests that compile C++ or start a benchmark's processes
	$(PYTEST) -m slow $(ARGS)

bench: setup ## the operators and layers against their peers, side by side
	$(py) -m pytest benchmarks/operators $(ARGS)

peers: setup ## ONNX Runtime, OpenVINO and DeepSparse, for engine-bench
	benchmarks/networks/peers

gpu: setup ## all that wants one data-centre GPU; out/gpu/gpu.json (ARGS=--dry: what can be tried without a GPU)
	PYTHON=$(py) benchmarks/gpu/run $(ARGS)

engine-bench: setup ## whole networks against the peers that are here (ARGS="table --quick"; `make peers` first)
	$(py) -m benchmarks.networks $(or $(ARGS),table)

# ---- the gates of CI ------------------------------------------------------------------------------------------------

cpp_files = $(shell git ls-files --cached --others --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh')
cmake_package = -G Ninja -DPython_EXECUTABLE=$(abspath $(py)) \
  -Dpybind11_DIR=$$($(py) -m pybind11 --cmakedir) -DSECATEUR_WERROR=ON

lint: $(VENV)/.made-lint ## ruff and clang-format, nothing is changed
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(cpp_files)

format: $(VENV)/.made-lint ## let ruff and clang-format change the files
	ruff check --fix .
	ruff format .
	clang-format -i $(cpp_files)

types: $(VENV)/.made-lint ## mypy --strict on the package
	mypy

werror: $(VENV)/.made-tools ## the library with warnings as errors (CXX=clang++ for clang)
	cmake -S . -B build/werror-$(notdir $(CXX)) $(cmake_package) -DCMAKE_CXX_COMPILER=$(CXX) -DSECATEUR_CUDA=OFF
	cmake --build build/werror-$(notdir $(CXX))

cuda: $(VENV)/.made-tools ## compile the CUDA library for sm_80, sm_90 and PTX (needs nvcc, no GPU)
	cmake -S . -B build/cuda $(cmake_package) -DSECATEUR_CUDA=ON
	cmake --build build/cuda --target secateur_cuda

native-test: $(VENV)/.made-tools ## the kernels without torch, every instruction set of this CPU
	cmake -S tests/native -B build/native-$(notdir $(CXX)) -G Ninja -DCMAKE_CXX_COMPILER=$(CXX)
	cmake --build build/native-$(notdir $(CXX))
	build/native-$(notdir $(CXX))/test_kernels

sanitize: $(VENV)/.made-tools ## the same under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake -S tests/native -B build/sanitize-$(notdir $(CXX)) -G Ninja -DCMAKE_CXX_COMPILER=$(CXX) -DSECATEUR_SANITIZE=address,undefined
	cmake --build build/sanitize-$(notdir $(CXX))
	build/sanitize-$(notdir $(CXX))/test_kernels

tsan: $(VENV)/.made-tools ## what threads share, under ThreadSanitizer
	cmake -S tests/native -B build/tsan-$(notdir $(CXX)) -G Ninja -DCMAKE_CXX_COMPILER=$(CXX) -DSECATEUR_SANITIZE=thread
	cmake --build build/tsan-$(notdir $(CXX))
	build/tsan-$(notdir $(CXX))/test_races

# Asked of the package that is already here, as above. Atheris has no wheel for every Python.
$(VENV)/.made-fuzz: $(VENV)/.made-package
	$(say) "Atheris"
	@$(py) -m pip install -q 'secateur[fuzz]'
	@touch $@

fuzz: $(VENV)/.made-fuzz ## mutated layers, programs and files for FUZZ_SECONDS=60 in all (needs clang)
	cmake -S tests/fuzz -B build/fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++
	cmake --build build/fuzz
	PYTHON=$(abspath $(py)) tests/fuzz/run build/fuzz $(FUZZ_SECONDS)

fuzz-modules: setup ## random modules through the five calls, against plain torch (SECONDS=60 SEED=1; ARGS=--planted)
	PYTHONPATH=tests/fuzz $(py) -m module_fuzzer --seconds $(or $(SECONDS),$(FUZZ_SECONDS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

emulated: $(VENV)/.made-tools ## native-test with AVX-512 and VNNI emulated, for CPUs without (needs SIMDe)
	cmake -S tests/native -B build/emulated -G Ninja -DCMAKE_CXX_COMPILER=$(CXX) -DSECATEUR_EMULATE=ON
	cmake --build build/emulated
	build/emulated/test_kernels

neon: $(VENV)/.made-tools ## the same cross-compiled for AArch64, under qemu-user
	cmake -S tests/native -B build/neon -G Ninja -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/cmake/aarch64.cmake
	cmake --build build/neon
	qemu-aarch64 build/neon/test_kernels

# What compiles or converts models: whichever kernels are taken, these tests must pass. (Not those of random graphs: the
# plain-torch twin runs them.)
planned_tests = tests/engine --ignore tests/engine/test_engine_graphs.py tests/quantization tests/nn/test_convert.py \
  tests/nn/test_sparse_layers.py tests/promises/test_numerics.py tests/promises/test_concurrency.py \
  $(addprefix tests/checkpoint/test_checkpoint_models.py::,test_compiled test_compiled_and_quantized)

random-planner: setup ## the engine's tests with kernels chosen at random instead of by the clock (SEEDS="1 2")
	@for seed in $(SEEDS); do echo "==> SECATEUR_PLANNER=random:$$seed"; \
	  SECATEUR_PLANNER=random:$$seed $(PYTEST) -q $(planned_tests) $(ARGS); done

abi: $(VENV)/.made-lint ## the built library uses torch's stable ABI only, minimum 2.10
	$(py) .ci/abi.py

other-torch: setup ## the same built library passes the tests on torch 2.13.0
	.ci/other-torch $(ARGS)

pythons: setup ## the other Pythons that are here: files compile, the library's window works (ARGS=--torch: the tests too)
	.ci/pythons $(ARGS)

sdist: setup ## an sdist installs with plain pip in a clean environment
	.ci/sdist

check: lint types test native-test ## what pre-commit runs, and the tests

clean: ## remove what was built
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

distclean: clean ## remove .venv too
	rm -rf $(VENV)
