# Two commands do everything on a fresh machine with python3, g++ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= runs/demo

# As the command line does for itself (fastrank/cli.py): waiting threads sleep instead of spinning.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-python test-device-code test-interpreted mutants install bench gpu-check lint clean

demo: install
	$(BIN)/fastrank train --preset demo --temperature 1 100 --out $(DEMO_OUT)
	$(BIN)/fastrank report $(DEMO_OUT)/* --out $(DEMO_OUT)/report.html

# Two at a time; the third begins where the first is done.
test: install
	@$(MAKE) --no-print-directory --jobs=2 test-device-code test-python test-interpreted

test-python: install
	$(BIN)/python -m pytest tests --ignore=tests/emulate --ignore=tests/compile --ignore=tests/interpret

# GPU code on the CPU: emulated, and compiled for every architecture. What it says comes when it is done, not between
# the other part's lines.
test-device-code: install
	@mkdir -p build; \
	$(BIN)/python -m pytest tests/emulate tests/compile > build/test-device-code.log 2>&1; \
	status=$$?; cat build/test-device-code.log; exit $$status

# Triton's kernels in its interpreter, which must be chosen before triton is imported.
test-interpreted: install
	@mkdir -p build; \
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpret > build/test-interpreted.log 2>&1; \
	status=$$?; cat build/test-interpreted.log; exit $$status

# All planted bugs of the CUDA sources, of which `make test` takes every fifth, and ThreadSanitizer: each is a compilation.
mutants: install
	FASTRANK_ALL_MUTANTS=1 $(BIN)/python -m pytest tests/emulate/test_mutants_source.py \
	  tests/emulate/test_mutants_patches.py tests/emulate/test_sanitizers.py

bench: install
	$(BIN)/fastrank bench

# The whole verdict on a machine with a GPU, in under ten minutes; the report goes to runs/gpu-check.
gpu-check: install
	$(BIN)/fastrank bench --gpu-check

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(VENV)/.installed

# Reinstalled when what is built or depended on changes; Python sources are used in place.
$(VENV)/.installed: pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f)
	@echo "Installing into $(VENV): torch and its companions are about 6 GB, then the native core is compiled."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,report,dev]'
	touch $@

clean:
	rm -rf build $(VENV) *.egg-info kernels/_core*.so kernels/_build_report.json
