# Two commands: `make demo` shows the product on real servers, `make test` proves it.
# Both make their own virtual environment in .venv; Python 3.11 or newer is all they need, and PgBouncer for the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TOOLS  := .venv-tools
LOCK   := requirements
JOBS   ?= 4
FAULTS ?= 300

# Tests are handed out by the file, in the order of the folders, the slow ones first and those of milliseconds last: so
# all workers end at the same time, and what the tests of a file share is made once, not once in each worker. Four keep
# two cores busy: a test of the slow folders waits for servers half of its time and more.
SPREAD := --dist loadfile --no-loadscope-reorder

# The tests start hundreds of processes: each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-mail test lint types contracts unit faults format reference docs lock audit sbom clean

demo: $(STAMP)
	$(BIN)/orchestrator demo

demo-mail: $(STAMP)
	$(BIN)/orchestrator demo mail

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

# The reference pages, from the code.
reference: $(STAMP)
	$(BIN)/python -m tools.reference

# The site, in `site/`, without a network: dead links and anchors are errors.
docs: reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Everything that is installed is locked, with the hash of each file that may be; this project itself is built by what is
# locked, too.
$(STAMP): pyproject.toml $(LOCK)/build.txt $(LOCK)/dev.txt $(LOCK)/tlog.txt
	@echo 'installing what is locked into $(VENV); the first time that takes a minute or so ...'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r $(LOCK)/build.txt -r $(LOCK)/dev.txt
	$(BIN)/pip install --quiet --no-deps --ignore-requires-python --require-hashes -r $(LOCK)/tlog.txt
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# After a change of dependencies in pyproject.toml; `make lock UPGRADE=--upgrade` takes the newest of all. For every
# Python from 3.11 on, Linux and macOS. Needs a package index.
COMPILE = $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-header --no-emit-index-url --no-emit-find-links $(UPGRADE)

lock: $(TOOLS)/.installed
	$(COMPILE) $(LOCK)/build.in -o $(LOCK)/build.txt
	$(COMPILE) --extra serve --extra ui pyproject.toml -o $(LOCK)/runtime.txt
	$(COMPILE) --extra dev --extra dev-stack -c $(LOCK)/runtime.txt pyproject.toml -o $(LOCK)/dev.txt
	$(COMPILE) $(LOCK)/tools.in -o $(LOCK)/tools.txt

# Known vulnerabilities of everything that is locked. Asks PyPI's advisory database: it fails where that cannot be reached
# or does not know a package, since nothing was looked at then.
audit: $(TOOLS)/.installed
	@for file in build runtime dev tools; do \
	  $(TOOLS)/bin/pip-audit --strict --progress-spinner off --require-hashes --disable-pip -r $(LOCK)/$$file.txt || exit 1; \
	done

# What a deployment consists of, as CycloneDX JSON. Offline.
sbom: $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
	  -o sbom.cdx.json $(LOCK)/runtime.txt

$(TOOLS)/.installed: $(LOCK)/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --require-hashes -r $(LOCK)/tools.txt
	touch $@

clean:
	rm -rf $(VENV) $(TOOLS) sbom.cdx.json .mypy_cache .ruff_cache .pytest_cache .hypothesis
