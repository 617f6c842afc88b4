# Everything sets itself up in $(VENV): a fresh clone needs Python >= 3.10, a C++ compiler and make.
#
#   make demo    train a binary network (writes demo.png)    make lint    ruff, mypy, clang-format
#   make test    the whole test suite and the doctests       make format  what lint would ask of the layout
#   make bench   the benchmark table                         make clean   remove what was built, keep $(VENV)
#   make build   the compiled extension
#
# Slow, and not part of CI (CONTRIBUTING.md says when each was last run):
#
#   make wheel   dist/*.whl with the CUDA library, dist/cpu/*.whl without; checked by abi3audit and auditwheel
#   make sdist   dist/sdist/*.tar.gz, built and imported in two new environments, with build isolation and without
#   make compat  the first of the wheels on every torch and Python that it names
#   make sanitize  the CPU and the emulated kernels under AddressSanitizer and UBSan
#   make fuzz    5,000 random cases of every kind (FUZZ=) against the reference
#   make races   the tests of the emulated CUDA kernels, with every access checked
#   make large   more than 2^31 elements on the CPU, 19 GB of memory
#
# For a machine with a GPU, without a network: it builds and tests with PYTHON's own torch, not in $(VENV).
#
#   make gpu-proof   everything that only a GPU can show, written to benchmarks/results/ (CONTRIBUTING.md)
#
# TEST=, DEMO=, BENCH=, COMPAT= and PROOF= hand arguments on: make test TEST='tests/programs/test_demo.py -k idx', make demo DEMO='--epochs 5'.
# The tests run in WORKERS=2 processes, a file at a time; with WORKERS=0 in one, as plain pytest does.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
WORKERS ?= 2
TEST ?=
DEMO ?=
BENCH ?=
FUZZ ?= 5000
COMPAT ?=
PROOF ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SOURCES := $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
CPP := $(SOURCES) $(wildcard tests/*/*.h tests/*/*.cpp tests/*/*.cu examples/*/*.cpp)

.PHONY: demo test races bench lint format wheel wheel-cpu sdist compat sanitize fuzz large gpu-proof build clean
.DELETE_ON_ERROR:

demo: $(VENV)/extension
	$(PY) -m ste_ops demo $(DEMO)

test: $(VENV)/extension $(VENV)/peers
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TEST)

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

# torch is linked to and not packed in: the wheel finds the libraries of the torch that is installed.
# The platform is that of torch's own wheels: auditwheel refuses a library that asks for a newer glibc.
AUDIT = $(PY) -m auditwheel repair --plat manylinux_2_28_$(shell uname -m) --only-plat --exclude 'libtorch*' --exclude 'libc10*'
define make_wheel
	rm -rf build/lib* build/bdist* build/wheel
	FORCE_CUDA=$(1) $(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(VENV))/bin:$$PATH" $(AUDIT) --wheel-dir $(2) build/wheel/*.whl
	$(PY) -m auditwheel show $(2)/*.whl
	$(VENV)/bin/abi3audit --strict --report $(2)/*.whl
	ls -l $(2)/*.whl
endef

wheel: wheel-cpu
	rm -f dist/*.whl
	$(call make_wheel,1,dist)

wheel-cpu: $(VENV)/wheel-tools
	rm -rf dist/cpu
	$(call make_wheel,0,dist/cpu)

# With isolation pip compiles against the newest torch that it finds, and what comes out runs on the one beside it.
define build_from_sdist
	$(PYTHON) -m venv build/sdist/$(1)
	build/sdist/$(1)/bin/pip install --quiet --disable-pip-version-check torch==$(TORCH) numpy $(2)
	FORCE_CUDA=0 build/sdist/$(1)/bin/pip install --no-cache-dir --disable-pip-version-check $(3) dist/sdist/*.tar.gz
	cd build/sdist && $(1)/bin/python -m ste_ops info
endef

sdist: $(VENV)/torch
	rm -rf dist/sdist build/sdist
	$(PY) setup.py --quiet sdist --dist-dir dist/sdist
	$(call build_from_sdist,plain,"setuptools>=77" ninja,--no-build-isolation)
	$(call build_from_sdist,isolated,,)

compat:
	@ls dist/*.whl >/dev/null || { echo "no wheel in dist/: run make wheel first"; exit 1; }
	$(PYTHON) tools/compat.py dist/*.whl $(COMPAT)

sanitize: $(VENV)/extension
	$(PY) tools/sanitize.py -n $(WORKERS) --dist loadfile $(TEST)

fuzz: $(VENV)/extension
	STE_OPS_FUZZ=$(FUZZ) $(PY) -m pytest -n $(WORKERS) tests/operators/test_fuzz.py tests/operators/test_robustness.py $(TEST)

large: $(VENV)/extension
	STE_OPS_LARGE=1 $(PY) -m pytest tests/operators/test_large.py $(TEST)

gpu-proof:
	@$(PYTHON) -m tools.gpu_proof $(PROOF)

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

# Without their dependencies, which would replace torch. Where they cannot be had, tests/operators/test_peers.py skips them.
$(VENV)/peers: pyproject.toml $(VENV)/torch
	$(PIP) install --no-deps --group peers || echo "ste_ops: no peers to compare with, their tests will be skipped"
	@touch $@

$(VENV)/wheel-tools: pyproject.toml $(VENV)/torch
	$(PIP) install --group wheel
	@touch $@

# Without their dependencies, which would replace torch. Where they cannot be had, tests/programs/test_recipes.py skips them.
test: $(VENV)/recipes $(VENV)/loaders $(VENV)/onnx

$(VENV)/recipes: pyproject.toml $(VENV)/torch
	$(PIP) install --no-deps --group recipes || echo "ste_ops: no trainers to try, their recipes will be skipped"
	@touch $@

# Likewise: its dependencies are torch and what it fetches files with. Else tests/data/test_torchdata.py is skipped.
$(VENV)/loaders: pyproject.toml $(VENV)/torch
	$(PIP) install --no-deps --group loaders || echo "ste_ops: no torchdata, its loader will not be tried"
	@touch $@

# Likewise: with their dependencies pip would look for a numpy that suits them all. Else most of tests/export is skipped.
$(VENV)/onnx: pyproject.toml $(VENV)/torch
	$(PIP) install --no-deps --group onnx || echo "ste_ops: no ONNX to export to, its tests will be skipped"
	@touch $@
