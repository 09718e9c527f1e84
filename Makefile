# make train   the main job: train on the embedded digits, measure, export
# make test    the fast tests;  make test-slow  the slow ones;  make lint  ruff and mypy
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

.PHONY: train test test-slow lint clean

train: $(VENV)/installed
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow -rs $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"der_tf needs Python 3.11 or 3.12, received {v[0]}.{v[1]}: name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing der_tf and its packages into $(VENV) (a few minutes the first time) ..."
	$(INSTALL) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt $(VENV)/installed
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
