# Every target works from a fresh clone; `make dev` needs only Debian's python3, python3-venv and make.
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
SOURCES := agent controller models proto tests packaging

.PHONY: dev demo test test-root check bench deb needs lab soak fuzz protos format clean
dev: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "make needs Python 3.11 or newer with its venv module; $(PYTHON) will not do." >&2; \
	    echo "On Debian: apt install python3-venv. Another Python: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --group dev --editable '.[agent,controller]'
	$(BIN)/python -m vedette.controller.adapters.openmp $(VENV)/openmp
	touch $@

# Tests and benchmarks load LightGBM in their own process; a minimal Debian has no OpenMP runtime for it (libgomp1).
test test-root bench lab soak fuzz: export LD_LIBRARY_PATH := $(CURDIR)/$(VENV)/openmp$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))

demo: dev
	$(BIN)/vedette demo $(ARGS)

# Side by side, for they wait more than they work; `make test ARGS="-n 0"` runs one after the other.
test: dev
	$(BIN)/python -m pytest -m 'not root and not gpu and not lab and not soak' -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder $(ARGS)

# What needs root: disks that are really full, packages made twice (those need `make needs`).
test-root: dev
	$(BIN)/python -m pytest -m 'root and not gpu and not lab and not soak' $(ARGS)

# The two Debian packages, into dist/. `make deb ARGS=--help` has the rest.
deb: dev
	packaging/build $(ARGS)

# What `make deb` and `make lab` take beyond `make dev`; installs it as root, else says what is missing.
needs:
	packaging/needs

# Real Debian hosts from the real packages, on this machine; needs root. `make lab ARGS=--help` has the rest.
lab: dev
	$(BIN)/python -m tests.lab $(ARGS)

# Promises under fire for minutes each; then the lab's own.
soak: dev
	SWAP_SECONDS=60 $(BIN)/python -m pytest tests/integration/agent/test_swap_under_load.py
	$(BIN)/python -m pytest -m 'soak and not gpu' -n 0
	$(BIN)/python -m tests.lab --soak $(ARGS)

# Coverage-guided, of every parser of bytes that others wrote; `make fuzz ARGS=--help` has the rest.
fuzz: dev
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --group fuzz || echo "atheris cannot be installed here" >&2
	$(BIN)/python -m tests.fuzz $(ARGS)

check: dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	tools/protos.sh --check

format: dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

protos: dev
	tools/protos.sh

bench: dev
	$(BIN)/python -m tests.bench $(ARGS)

clean:
	@! grep -qs '"$(CURDIR)/build/' /run/vedette-lab/vlab* || { \
	    echo "hosts of a lab run in build/: make lab ARGS=--down" >&2; exit 1; }
	rm -rf --one-file-system $(VENV) dist build
