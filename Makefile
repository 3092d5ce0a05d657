CONFIG ?= configs/digits
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LOWEST ?= .venv-lowest
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup all test test-all test-lowest lint docs bench clean

help: ## these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

# The stamp is younger than pyproject.toml when what it asks for is installed.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(VENV)/installed ## create .venv and install softlabels with its tools

# distill.py also says what is wrong with a study of no or an unknown pipeline.
all: $(CONFIG)/study.yaml setup ## run a whole study: make all CONFIG=configs/digits
	@script=$$(sed -n "s/^pipeline: *[\"']*\([A-Za-z0-9_-]*\).*/pipelines\/\1.py/p" $(CONFIG)/study.yaml); \
	test -f "$$script" || script=pipelines/distill.py; \
	echo "$(BIN)/python $$script $(CONFIG) --jobs $(JOBS)"; $(BIN)/python $$script $(CONFIG) --jobs $(JOBS)

# Only reached when there is no such file, and before anything is installed.
$(CONFIG)/study.yaml:
	@echo "error: there is no $@; give CONFIG=configs/NAME, of" $$(ls configs) >&2; exit 1

test: setup ## the tests that fit in a few minutes
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m 'not slow'

test-all: setup ## every test, the long ones too
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

# Frameworks and servers that other extras bring are left out: their tests are skipped there.
$(LOWEST)/installed: pyproject.toml tests/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable '.[test]'
	@touch $@

test-lowest: $(LOWEST)/installed ## the quick tests with the lowest versions of all dependencies
	$(LOWEST)/bin/python -m pytest -q -n $(JOBS) --dist loadfile -m 'not slow'

lint: setup ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## the documentation as HTML, into docs/_build; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build

bench: setup ## every benchmark; results are recorded in benchmarks/RESULTS.md
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## remove runs, caches and the environment
	rm -rf $(VENV) $(LOWEST) runs build dist docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
