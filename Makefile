# make setup | demo | test | check | test-all | test-install
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PLATFORM := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.ready-$(PLATFORM)
# Two processes on any machine: a test of four ranks has four more of its own.
TEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

.PHONY: setup demo test test-all test-install check clean

setup: $(STAMP)

$(STAMP): requirements/torch.txt requirements/stack.txt requirements/sharding-$(PLATFORM).txt requirements/dev.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "prismrec needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@echo "Setting up .venv with the $(PLATFORM) stack (about two minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements/torch.txt
	@$(PIP) -r requirements/stack.txt -r requirements/dev.txt
	@$(PIP) --no-deps -r requirements/sharding-$(PLATFORM).txt
	@$(PIP) --no-deps --editable .
	@$(BIN)/prismrec doctor
	@touch $@

demo: setup
	@$(BIN)/prismrec demo

test: setup
	@$(TEST) -m "not slow and not gpu"

test-all: setup
	@$(TEST)

test-install:
	@PYTHON=$(PYTHON) bash tests/install.sh

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python tests/helpers/typing_tree.py
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) .typing build dist *.egg-info
