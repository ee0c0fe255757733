# Two commands: `make demo` shows the product on real servers, `make test` proves it.
# Both make their own virtual environment in .venv; Python 3.11 or newer is all they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= 3
FAULTS ?= 300

# Tests are handed out one by one in the order of the folders, the slow ones first and those of milliseconds last: so
# all workers end at the same time. A worker still sees the tests of a file in their order, one after another. Three
# keep two cores busy: a test waits for servers half of its time.
SPREAD := --dist load --maxschedchunk 1

# The tests start hundreds of processes: each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types contracts unit faults format clean

demo: $(STAMP)
	$(BIN)/orchestrator demo

test: lint types contracts unit

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports --no-cache

unit: $(STAMP)
	$(BIN)/pytest -n $(JOBS) $(SPREAD)

faults: $(STAMP)
	ORCHESTRATOR_TEST_FAULTS=$(FAULTS) $(BIN)/pytest -s tests/faults/test_random_faults.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev-stack,dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
