# Works on a fresh clone with nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
SCRIPTS := $(wildcard .ci/* benchmarks/*.sh launch/*.sh tests/stand_ins/*/*)

.PHONY: demo test test-long check wheel notebooks docs clean

demo: .venv/installed
	$(BIN)/python -m dnal_jax.main --config=configs/quickstart.py --config.target.macs=0.1 --uniform --workdir=runs/demo

# The checks run beside the tests, which do not use two cores all of the time.
test: .venv/dev
	$(MAKE) --jobs=2 check short

.PHONY: short
short: .venv/dev
	$(BIN)/python -m pytest -m 'not long and not install'

# Tests that take minutes each: many kills, many mutations, networks in full
# depth. Run them before a release and after a change to what they test.
test-long: .venv/dev
	$(BIN)/python -m pytest -m long

# The same as .pre-commit-config.yaml.
check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/python -m pytest --numprocesses=0 tests/test_imports.py

# Builds a wheel, installs it into an empty environment, and predicts there.
wheel: .venv/dev
	$(BIN)/python -m pytest --numprocesses=0 -m install tests/test_packaging.py

# Executes the notebooks and keeps their outputs.
notebooks: .venv/dev
	$(BIN)/python notebooks/execute.py

# The documentation as a site in build/docs; fails at a warning, such as a link
# to a page or a heading that does not exist. In a small environment of its own, as
# it reads the code without importing it.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --clean

clean:
	rm -rf .venv .venv-docs build runs

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dnal_jax needs Python 3.11 or later; make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[train]'
	touch $@

.venv/dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

.venv-docs/installed: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet -r requirements-docs.txt
	touch $@
