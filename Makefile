# make demo: from a clone to a report. make test: everything that must hold. See README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test check bench docs clean

demo: $(VENV)/.demo
	$(BIN)/netloupe inspect

test: $(VENV)/.test
	$(BIN)/python -m pytest

check: $(VENV)/.test $(VENV)/.check
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/.test $(VENV)/.bench
	set -e; for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(VENV)/.test $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

# Each stamp is one step of the environment; a step is repeated when the requirements change.
$(VENV)/.demo: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit("netloupe needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.check: $(VENV)/.test
	$(PIP) -c constraints.txt -e '.[check]'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) -c constraints.txt -e '.[bench]'
	touch $@

$(VENV)/.docs: $(VENV)/.test
	$(PIP) -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache
