# Berthmaster. `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PYTHONSAFEPATH := 1

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin
CASES ?= ../shared/cases
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@echo "[setup] Python packages into $(VENV) (about a minute the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "[setup] Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); name another with PYTHON=..."; exit 1; }
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV) || { echo "[setup] python3-venv is missing: install it, or name another interpreter with PYTHON=..."; exit 1; }
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: install
install: $(READY) ## virtual environment with every dependency, by hash

.PHONY: binaries
binaries: $(READY) ## Kubernetes, etcd and kwok into the cache (a cold build takes about 12 minutes)
	@$(RUN)/berthmaster-sandbox binaries

.PHONY: demo
demo: binaries ## a real control plane, the real config, sample pods, and where each landed and why
	@$(RUN)/python -m berthmaster_sandbox.demo

.PHONY: test
test: binaries ## all tests, against the real control plane too
	@$(RUN)/python -m pytest

.PHONY: cases
cases: $(READY) ## decision cases: make cases CASES=<file or folder>
	@$(RUN)/python -m berthmaster.cli.cases $(CASES)

.PHONY: lint
lint: $(READY) ## formatter, linter, types, import direction
	@test ! -e operator/__init__.py && test ! -e webhook/__init__.py
	@$(RUN)/ruff format --check .
	@$(RUN)/ruff check .
	@$(RUN)/mypy
	@$(RUN)/lint-imports

.PHONY: bench
bench: binaries ## speed figures, side by side on this machine
	@PYTHONPATH=bench $(RUN)/python bench/decision.py
	@PYTHONPATH=bench $(RUN)/python bench/memory.py --nodes 1000 --pods 30000
	@PYTHONPATH=bench $(RUN)/python bench/admission.py --nodes 1000 --pods 8000 --seconds 15
	@PYTHONPATH=bench $(RUN)/python bench/operator_cpu.py --nodes 1000 --pods 8000 --periods 15 --seconds 15
	@PYTHONPATH=bench $(RUN)/python bench/end_to_end.py --nodes 200 --pods 300 --turns 2

.PHONY: sandbox
sandbox: binaries ## a control plane that stays up; prints how to point kubectl at it
	@$(RUN)/berthmaster-sandbox up

.PHONY: crds
crds: $(READY) ## write crds/ from the models
	@$(RUN)/python -m berthmaster.api.crds crds

.PHONY: lock
lock: $(READY) ## resolve the lock files anew (needs uv)
	@$(LOCK) pyproject.toml --all-extras -o requirements.lock
	@$(LOCK) pyproject.toml --extra operator --extra webhook -c requirements.lock -o requirements-runtime.lock
	@$(RUN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | $(LOCK) - -c requirements.lock -o requirements-build.lock

.PHONY: clean
clean: ## remove what the targets above made in this folder
	@rm -rf $(VENV) .work .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
