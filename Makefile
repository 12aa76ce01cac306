# A virtual environment in .venv, and the checks that .ci/run makes in a fresh one.
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup check test lint types format bench nano nano-tables

setup: $(BIN)/guard

$(BIN)/guard: pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

check: lint types test

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	@set -e; for script in $(sort $(filter-out benchmarks/nano_tables.py,$(wildcard benchmarks/[a-z]*.py))); do \
		echo "== $$script"; $(BIN)/python $$script; \
	done

# The embedded model anew, from its base's wheels: DATA (labelled rows) and WORK (what is made on the way) are folders.
# MODEL: another folder than the package's for what is made. TRIAL: so many rows of each file, and next to no training.
nano: setup
	$(BIN)/python training/nano/make.py --data $(DATA) --work $(WORK) $(if $(MODEL),--model $(MODEL)) $(if $(TRIAL),--trial $(TRIAL))

# The embedded model's tables in docs/performance.md, to be run on a quiet machine when its weights have changed.
nano-tables: setup
	$(BIN)/python benchmarks/nano_tables.py
