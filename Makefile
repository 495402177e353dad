# Works on a fresh clone with nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
SCRIPTS := $(wildcard .ci/* benchmarks/*.sh launch/*.sh tests/stand_ins/*/*)

.PHONY: demo test test-long check notebooks clean

demo: .venv/installed
	$(BIN)/python -m dnal_jax.main --config=configs/quickstart.py --workdir=runs/demo

test: check
	$(BIN)/python -m pytest -m 'not long'

# What takes long by nature: many kills, many mutations, every network in full
# depth. Run it before a release, and after changing what it is about.
test-long: .venv/dev
	$(BIN)/python -m pytest -m long

# What .pre-commit-config.yaml runs, and no more.
check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/python -m pytest --numprocesses=0 tests/test_imports.py

# Executes the notebooks and keeps their outputs.
notebooks: .venv/dev
	$(BIN)/python notebooks/execute.py

clean:
	rm -rf .venv runs

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dnal_jax needs Python 3.11 or later; make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
