# Everything runs in .venv, which the first command makes. Another Python: make PYTHON=python3.12 test
# One topic of the benchmarks: make bench ONLY=equivariant; all of them, small and quick: make bench QUICK=1
# A given build of PyTorch (CPU, CUDA): make TORCH_INDEX=https://... lab; see "Install" in README.md.

PYTHON ?= python3
TORCH_INDEX ?=
LAB_FLAGS ?=
ONLY ?=
QUICK ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
STARTED := $(shell date +%s)
FIRST := notebooks/00_inverse_problems.ipynb
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help lab test test-colab test-deepinv bench train notebooks lint format constraints clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lab: .venv/.notebooks  ## open the series in JupyterLab
	$(BIN)/jupyter lab $(ROOT_FLAG) --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/$(FIRST) $(LAB_FLAGS)

test: .venv/.test  ## run all tests: unit, notebooks, browser, Colab-shaped
	@$(BIN)/python -m pytest --since=$(STARTED)

test-colab: .venv/.test  ## run the widgets' and notebooks' tests under Colab's versions
	@$(BIN)/python -m pytest tests/colab

test-deepinv: .venv-deepinv/.made  ## run the tests with deepinv's own operators (several GB)
	@.venv-deepinv/bin/python -m pytest tests/optional

bench: .venv/.bench  ## measure time and memory beside the alternatives (QUICK=1: 3 minutes; ONLY=peers: one topic)
	@$(BIN)/python -m benchmarks $(ONLY) $(if $(QUICK),--quick,$(if $(ONLY),,--write))

train: .venv/.test  ## train the networks that are missing (hours; goes on where it was; start two for two cores)
	@$(BIN)/python scripts/train.py

notebooks: .venv/.notebooks  ## regenerate every .ipynb, with outputs, from its .py
	@$(BIN)/python scripts/notebooks.py

lint: .venv/.test  ## check style and formatting, notebooks included
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: .venv/.test  ## mend what `make lint` can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

constraints: .venv/.bench  ## pin in constraints.txt what .venv holds
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+[a-z0-9]*$$//'; } > .venv/constraints
	@mv .venv/constraints constraints.txt

clean:  ## remove the environments and all caches
	rm -rf .venv .venv-colab .venv-deepinv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "lemmse needs Python 3.11 or newer, and $(PYTHON) is: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv .venv \
	    || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu, install the package python3-venv"; rm -rf .venv; exit 1; }
	@touch $@

.venv/.torch: .venv/.python pyproject.toml constraints.txt
	@echo "Installing into .venv: a few minutes the first time"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@$(PIP) --quiet setuptools
	@touch $@

.venv/.notebooks: .venv/.torch
	@$(PIP) --quiet --no-build-isolation --editable '.[notebooks]'
	@touch $@

.venv/.test: .venv/.torch
	@$(PIP) --quiet --no-build-isolation --editable '.[test,lint,scripts]'
	@touch .venv/.notebooks $@

# What the estimators are measured against; what cannot be installed is named as missing.
.venv/.bench: .venv/.test
	@$(PIP) --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --no-build-isolation --editable '.[bench]' \
	    && touch $@ || echo "Not all of the extra bench could be installed: measuring without what is missing"

# An environment of its own: torchvision, which deepinv needs, must come from where torch does.
.venv-deepinv/.made: .venv/.python pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv-deepinv
	@$(PIP:.venv/%=.venv-deepinv/%) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch torchvision
	@$(PIP:.venv/%=.venv-deepinv/%) --quiet setuptools
	@$(PIP:.venv/%=.venv-deepinv/%) --quiet --no-build-isolation --editable '.[test]' deepinv
	@touch $@
