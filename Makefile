# Two commands do everything on a fresh machine with python3, g++ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= runs/demo

# As the command line does for itself (fastrank/cli.py): waiting threads sleep instead of spinning.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test install bench gpu-check lint clean

demo: install
	$(BIN)/fastrank train --preset demo --temperature 1 100 --out $(DEMO_OUT)
	$(BIN)/fastrank report $(DEMO_OUT)/* --out $(DEMO_OUT)/report.html

# The Triton kernels run in the interpreter, which must be chosen before triton is imported: a process of its own.
test: install
	$(BIN)/python -m pytest tests --ignore=tests/interpret
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpret

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
