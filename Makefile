# make demo   install and run the whole story on the embedded world, then say which command serves it
# make test   install what tests need, lint, type-check and run all tests
# make help   the other targets
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test

.PHONY: help install demo test quick lint types format serve clean

help:
	@sed -n 's/^# //p' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(TEST_STAMP): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@ $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python jobs/quickstart.py

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TEST_STAMP)
	$(BIN)/mypy

format: $(TEST_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quick: $(TEST_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/integration

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --durations 15

serve: $(STAMP)
	$(BIN)/serve run serve_configs/retriever.yaml

clean:
	rm -rf $(VENV) build *.egg-info
