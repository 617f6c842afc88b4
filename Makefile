# Everything sets itself up in $(VENV): a fresh clone needs Python >= 3.10, a C++ compiler and make.
#
#   make demo    train a binary network (writes demo.png)    make lint    ruff, mypy, clang-format
#   make test    the whole test suite and the doctests       make wheel   dist/*.whl, checked by abi3audit
#   make bench   the benchmark table                         make format  what lint would ask of the layout
#   make build   the compiled extension                      make clean   remove what was built, keep $(VENV)
#   make races   the tests of the emulated CUDA kernels, with every access checked
#
# TEST=, DEMO= and BENCH= hand arguments on: make test TEST='tests/test_demo.py -k idx', make demo DEMO='--epochs 5'.
# The tests run in WORKERS=2 processes, a file at a time; with WORKERS=0 in one, as plain pytest does.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
WORKERS ?= 2
TEST ?=
DEMO ?=
BENCH ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SOURCES := $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
CPP := $(SOURCES) $(wildcard tests/*/*.h tests/*/*.cpp tests/*/*.cu)

.PHONY: demo test races bench lint format wheel build clean
.DELETE_ON_ERROR:

demo: $(VENV)/extension
	$(PY) -m ste_ops demo $(DEMO)

test: $(VENV)/extension $(VENV)/peers
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(TEST)

races: $(VENV)/extension
	STE_OPS_EMULATED_CHECK=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile -k emulat $(TEST)

bench: $(VENV)/extension
	$(PY) -m benchmarks $(BENCH)

build: $(VENV)/extension

lint: $(VENV)/lint-tools
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/lint-tools
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

wheel: $(VENV)/wheel-tools
	rm -rf build/lib* build/bdist* dist
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .
	$(VENV)/bin/abi3audit --strict --report dist/*.whl

clean:
	rm -rf build dist *.egg-info ste_ops/*.so
	rm -f $(VENV)/extension $(VENV)/package

# Empty files in $(VENV) say what stands there already; each is as new as what it was made from.

$(VENV)/torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ste_ops: Python >= 3.10 is needed, \
	$(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "pip>=25.1" "setuptools>=77" wheel ninja numpy torch==$(TORCH)
	@touch $@

# No build isolation: an isolated build would fetch a torch of its own, perhaps another one.
$(VENV)/package: pyproject.toml setup.py $(VENV)/torch
	$(PIP) install --no-build-isolation -e ".[demo,test]"
	@touch $@

# Compiles in the same folder as the line above, so only what has changed since.
$(VENV)/extension: $(SOURCES) $(VENV)/package
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/lint-tools: pyproject.toml $(VENV)/torch
	$(PIP) install --group lint
	@touch $@

# Without their dependencies, which would replace torch. Where they cannot be had, tests/test_peers.py skips them.
$(VENV)/peers: pyproject.toml $(VENV)/torch
	$(PIP) install --no-deps --group peers || echo "ste_ops: no peers to compare with, their tests will be skipped"
	@touch $@

$(VENV)/wheel-tools: pyproject.toml $(VENV)/torch
	$(PIP) install --group wheel
	@touch $@

# Without their dependencies, which would replace torch. Where they cannot be had, tests/test_recipes.py skips them.
test: $(VENV)/recipes

$(VENV)/recipes: pyproject.toml $(VENV)/torch
	$(PIP) install --no-deps --group recipes || echo "ste_ops: no trainers to try, their recipes will be skipped"
	@touch $@
