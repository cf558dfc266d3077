# `make demo` and `make test` are all the set-up there is: each makes .venv on first use and starts at once afterwards.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONPATH := .:kernels

.PHONY: demo test lint types clean

demo: .venv/ready
	$(BIN)/mmssl demo

test: lint types
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mmssl needs Python 3.11 or newer; call make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@echo "Installing what mmssl needs into .venv (a few minutes, once) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[media,cli,interop,dev]'
	@touch $@

clean:
	rm -rf .venv runs
