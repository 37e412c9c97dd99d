PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Matrices here are small: one thread each is faster than waking others, most of all on a busy machine.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo lint test test-all

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

test: lint
	$(BIN)/pytest -n auto -m 'not slow' --cov=npg --cov-report=term-missing:skip-covered --cov-fail-under=95

test-all: lint
	$(BIN)/pytest -n auto

