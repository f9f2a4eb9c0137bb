# The two commands of this project are `make demo` and `make test`; `make` alone lists all of them.
# Variables: PYTHON (interpreter that makes .venv), JOBS (test processes), ARGS (more arguments for the target's command).

PYTHON ?= python3
JOBS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1); echo $$((n > 4 ? 4 : n)))
TEST_SECONDS ?= 1980
RUNS ?= runs
PORT ?= 5000
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# One stamp for what a run needs, one for the development tools on top; both live and die with the environment.
RUN := $(VENV)/.stamp-run
DEV := $(VENV)/.stamp-dev
PIP := $(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --no-compile -c constraints.txt

# Packages are compiled when they are first imported, not when they are installed: most of their files are never used.
unexport PYTHONDONTWRITEBYTECODE
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test zoo lint bench ui build clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(DEV) ## make .venv with geta and the development tools

demo: $(RUN) ## compare dense, GETA, DJPQ, qat_only and prune_then_ptq on digits at equal BOPs; prints the table
	@$(BIN)/geta compare methods=[dense,geta,djpq,qat_only,prune_then_ptq] match=bops task=digits $(ARGS)

test: $(DEV) ## the whole test suite, and how much of geta_core its own tests cover
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --session-timeout=$(TEST_SECONDS) \
	  --cov=geta_core --cov-report=term-missing:skip-covered $(ARGS)

zoo: $(DEV) ## prune and prove every architecture at hand, one by one (about half an hour); writes docs/architectures.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo --out docs/architectures.md $(ARGS)

lint: $(DEV) ## ruff (rules and format) and mypy --strict
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy || status=1; \
	exit $$status

bench: $(DEV) ## step times, memory, capture times and the cost of studies, each beside its bound
	@$(BIN)/python -m tests.benchmarks $(ARGS)

ui: $(RUN) ## open the MLflow UI on the runs of this directory
	@$(BIN)/geta ui $(RUNS) --port $(PORT) $(ARGS)

build: $(DEV) ## the wheel, into dist/
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean: ## remove builds and the tools' caches; keeps .venv and runs/
	@rm -rf build dist htmlcov *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find geta_core baselines orchestration sweeps tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and .venv
	@rm -rf $(VENV)

# pip lives in the environment only when `venv` went through to its end.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  echo "geta needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1);" \
	    "name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing geta into $(VENV) (a minute or two the first time)"
	@$(PIP) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing geta and its development tools into $(VENV) (a minute or two the first time)"
	@$(PIP) -e '.[dev]'
	@touch $(RUN) $@
