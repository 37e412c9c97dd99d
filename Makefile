PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Matrices here are small: one thread each is faster than waking others, most of all on a busy machine.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: check demo floors lint test test-all

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[plot,test]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/npg train reinforce CartPole-v1 --seed 0

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict npg

# What to run after every change, in less than a minute: few examples of each property, no process, no command line.
check: lint
	HYPOTHESIS_PROFILE=fast $(BIN)/pytest -n auto -m 'not slow and not process' --ignore tests/lab/test_cli.py

# The same tests against the oldest dependencies that setup.cfg allows.
FLOORS := .venv-floors
$(FLOORS)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(FLOORS)
	sed -n '/^install_requires/,/^$$/s/ *>=\(.*\)/==\1.*/p' setup.cfg | tr -d ' ' > $(FLOORS)/floors.txt
	$(FLOORS)/bin/python -m pip install --quiet --constraint $(FLOORS)/floors.txt --editable '.[plot,test]'
	touch $@

floors: $(FLOORS)/.installed
	HYPOTHESIS_PROFILE=fast $(FLOORS)/bin/pytest -n auto -m 'not slow and not process'

test: lint
	$(BIN)/pytest -n auto -m 'not slow' --cov=npg --cov-report=term-missing:skip-covered --cov-fail-under=95

test-all: lint
	$(BIN)/pytest -n auto

