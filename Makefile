# make demo: a virtual environment with pinned packages, then `anyvla demo`.
# make test: the same environment plus test tools; lint, types, tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint types format clean

demo: $(VENV)/.installed
	$(BIN)/anyvla demo

test: lint types
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test-all: lint types
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and by its exact version, so that nothing else decides which build is taken; one that lies in the
# environment already is kept (see docs/troubleshooting.md for the CPU build)
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
