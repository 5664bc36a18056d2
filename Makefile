# The virtual environment stands in .venv; nothing outside it is touched.
PYTHON ?= python3
# What pip installs first. PyPI's torch brings CUDA (several GB); without an NVIDIA card this is smaller and faster:
#   make TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu" install
# torch and torchvision must come from the same index, else torchvision does not import.
TORCH ?= torch torchvision
# Further arguments of demo, test and quick, e.g. make test ARGS="-k packaging"
ARGS ?=
# Processes that share the tests, each of one thread.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -lt 4 ] && echo $$n || echo 4)

# Of each reader, by make fuzz.
SECONDS_EACH ?= 60

VENV := .venv
BIN := $(VENV)/bin
# loadgroup: tests that share what takes long to make (a whole run, a browser) stay in one process.
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test quick fuzz lint gpu matrix clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'PYTHON=python3.12   the interpreter to build $(VENV) with (3.10 or newer)'
	@echo 'TORCH="..."         what pip installs as torch; for a machine without an NVIDIA card:'
	@echo '                    TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu"'

install: $(STAMP)  ## build .venv: torch first, then align_gen with its development tools

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: align_gen needs Python 3.10 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@

demo: install  ## fine-tune the bundled emoji model and write a before/after report
	$(BIN)/align-gen demo $(ARGS)

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install lint  ## lint, then all tests; no network
	$(PYTEST) --durations=15 $(ARGS)

quick: install  ## the tests of a minute or two, for in between: all but those marked slow
	$(PYTEST) -m 'not slow' $(ARGS)

fuzz: install  ## random bytes for every reader of files, a minute each: make fuzz SECONDS_EACH=600
	ALIGN_GEN_FUZZ_SECONDS=$(SECONDS_EACH) $(PYTEST) tests/align_gen/test_fuzz.py $(ARGS)

gpu: install  ## on a machine with one: what a GPU computes beside what a CPU does
	ALIGN_GEN_TEST_GPU=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q tests/align_gen/test_cuda.py $(ARGS)

matrix: install  ## every method on every family, run small: docs/matrix.md
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/write_matrix.py

clean:  ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist
