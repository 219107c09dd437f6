# make demo    install and run the whole story on the embedded world, then say which command serves it
# make test    install what tests need, lint, type-check and run all tests
# make docs    build the documentation site into site/
# make latest  the tests again with the newest release of everything, in an environment of its own
# make help    the other targets
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The releases that were tested together; `CONSTRAINTS=` takes whatever is newest.
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))
# FAISS for CPUs; `FAISS=gpu` takes the one for NVIDIA GPUs. The two overwrite one another's files, so both go first.
FAISS := cpu
comma := ,
# An installation that is interrupted counts as none: the next command begins it again.
define install
rm -f $(STAMP) $(TEST_STAMP) $(DOCS_STAMP)
$(BIN)/python -m pip uninstall -qqq --yes faiss-cpu faiss-gpu
$(PIP) --editable ".[$(FAISS),$(1)]"
endef
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
DOCS_STAMP := $(VENV)/.installed-docs
# One process more than cores: tests with clusters wait for most of their time. A file's tests share their fixtures.
PROCESSES := $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu); echo $$((n < 8 ? n + 1 : 8)))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test tests quick lint types format docs serve latest constraints clean

help:
	@sed -n 's/^# make/make/p' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(call install,train$(comma)gallery)
	touch $@

$(TEST_STAMP): $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(call install,test)
	touch $@ $(STAMP)

$(DOCS_STAMP): $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(call install,train$(comma)docs)
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
	$(PYTEST) tests --ignore tests/integration

test: $(TEST_STAMP)
	$(MAKE) --jobs 2 lint types tests

tests: $(TEST_STAMP)
	$(PYTEST) tests --durations 20

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file .mkdocs.yml

serve: $(STAMP)
	$(BIN)/cirray serve retriever

latest:
	rm -rf .venv-latest
	$(MAKE) VENV=.venv-latest CONSTRAINTS= test
	@echo "The newest releases pass. To keep to them: make VENV=.venv-latest CONSTRAINTS= constraints"

constraints: $(TEST_STAMP)
	(sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip --disable-pip-version-check list --format freeze \
	    --exclude-editable --exclude pip --exclude wheel \
	    | sed 's/^faiss-[cg]pu==\(.*\)/faiss-cpu==\1\nfaiss-gpu==\1/' | LC_ALL=C sort -f) > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .venv-latest build *.egg-info
