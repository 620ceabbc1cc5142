# Everything that a developer or a CI machine runs. Needs Python 3.11, make, and pip's package index.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format wheel-test docs clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 14

setup: $(STAMP)  ## Make .venv and install the project into it, with what tests and checks need.

# torch comes first and alone, so that its build can be chosen: make setup TORCH="torch==... --index-url ..."
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 is needed, got " + sys.version)'
	@echo "setting up $(VENV): this takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) $(TORCH)
	$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Train for a few minutes, solve test days exactly, compare, write runs/demo/report.html.
	$(BIN)/evcs-gym demo

# Two processes fill two cores; threads of BLAS and torch inside them would only compete. A file stays in one process:
# its tests share prepared days.
test: $(STAMP)  ## Run the tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

check: $(STAMP)  ## Lint, formatting, types, import rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Put the sources into the common format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An old build folder is removed first: setuptools would put its stale files into the wheel.
wheel-test:  ## Install the wheel into an empty environment outside the repository and try it there.
	rm -rf build dist
	@set -e; \
	away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; repository=$$PWD; \
	$(PYTHON) -m venv "$$away/venv"; \
	"$$away/venv/bin/python" -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .; \
	rm -rf build; \
	"$$away/venv/bin/python" $(PIP_INSTALL) $(TORCH); \
	"$$away/venv/bin/python" $(PIP_INSTALL) dist/*.whl; \
	cp tests/wheel_smoke.py "$$away/"; cd "$$away"; \
	EVCS_GYM_CACHE="$$away/cache" PYTHONSAFEPATH=1 "$$away/venv/bin/python" wheel_smoke.py "$$repository"

docs: $(STAMP)  ## Regenerate the pages that are made from code.
	$(BIN)/python -m evcs_gym.evaluation.pages .

clean:  ## Remove what was built; runs/ and .venv/ stay.
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find envs baselines training evaluation configs tests -name __pycache__ -type d -prune -exec rm -rf {} +
