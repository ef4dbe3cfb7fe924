# Every command brings what it needs: uv into .tools, the packages into .venv, the control plane's
# programs into the user's cache. Nothing is installed by hand; the first run takes a while.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
UV := .tools/bin/uv
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
JOBS ?= 2
SEEDS ?= 20000
FIRST_SEED ?= 1
SECONDS ?= 60
KILLS ?= 200
SEED ?= 1
LEAST ?= 5000

.PHONY: help
help: ## Show the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(UV):
	@echo "== uv (the package installer) into .tools"
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9'

$(READY): $(UV) pyproject.toml requirements-dev.lock
	@echo "== the project's packages into $(VENV)"
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements-dev.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)

.PHONY: tools
tools: $(READY) ## Bring the packages and the control plane's programs
	$(BIN)/python hack/control_plane.py ensure

.PHONY: demo
demo: $(READY) ## From nothing to finished jobs on a real control plane
	@$(BIN)/python hack/demo.py

.PHONY: test
test: $(READY) ## Every test, on the real control plane
	$(BIN)/python hack/control_plane.py ensure
	$(PYTEST) --numprocesses $(JOBS) --dist loadfile

.PHONY: check
check: $(READY) ## Format, lint, types, layers, generated files, and the fast tests with coverage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=hack $(BIN)/mypy --strict --config-file= hack/*.py
	$(BIN)/lint-imports
	$(BIN)/python hack/sync_chart.py --check
	test ! -e operator/__init__.py
	$(BIN)/coverage run -m pytest tests/unit --quiet -m "not slow" --hypothesis-profile ci
	$(BIN)/coverage report

.PHONY: sim
sim: $(READY) ## Simulate the runtime: make sim SEEDS=500 FIRST_SEED=1 (20,000 seeds if not told)
	cd tests && ../$(BIN)/python -m sim --seeds $(SEEDS) --first-seed $(FIRST_SEED) \
	  $(if $(MINUTES),--minutes $(MINUTES) --least $(LEAST))

.PHONY: test-crash
test-crash: $(READY) ## Kill processes on the real control plane: make test-crash KILLS=20 SEED=1 (200 if not told)
	cd tests && PYTHONPATH=../hack ../$(BIN)/python -m crash --kills $(KILLS) --seed $(SEED)

.PHONY: fuzz
fuzz: $(READY) ## Fuzz every reader and translator: make fuzz SECONDS=60 TARGET=request (all if not told)
	cd tests && ../$(BIN)/python -m fuzz --seconds $(SECONDS) $(if $(TARGET),--target $(TARGET))

.PHONY: bench
bench: $(READY) ## Ratios against a baseline of the same run, into build/bench.json
	$(BIN)/python hack/bench.py

.PHONY: fmt
fmt: $(READY) ## Format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: lock
lock: $(UV) ## Compile the hashed lock files from pyproject.toml
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url pyproject.toml --output-file requirements.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --extra sandbox --group dev pyproject.toml --output-file requirements-dev.lock

.PHONY: clean
clean: ## Remove what the commands made here (not the cache of programs)
	rm -rf build dist .tools $(VENV) .coverage .coverage.* htmlcov .hypothesis .import_linter_cache \
	  .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
