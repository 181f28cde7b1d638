# Everything sets itself up: python3 and make are all that has to be there.
PYTHON ?= python3
BIN := .venv/bin
export MPLBACKEND := Agg

.PHONY: train test quick lint help

help:
	@echo "make train   train the small Spikformer on real digits (ARGS='--epochs 5' and so on)"
	@echo "make test    every test"
	@echo "make quick   the tests that take seconds"
	@echo "make lint    style"

.venv/package: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/dev: .venv/package
	$(BIN)/pip install --quiet --editable ".[dev,benchmark]"
	@touch $@

train: .venv/package
	$(BIN)/python -m spikformer_edu.train --dataset digits $(ARGS)

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 $(ARGS)

quick: .venv/dev
	$(BIN)/pytest -n 2 -m "not slow" $(ARGS)

lint: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
