# Two commands: `make demo` shows the product on real servers, `make test` proves it.
# Both make their own virtual environment in .venv; Python 3.11 or newer is all they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= 2
FAULTS ?= 300

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
	$(BIN)/pytest -n $(JOBS) --dist loadfile

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
