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
# Tests wait for clusters more than they compute.
WORKERS ?= 2
# From `pyproject.toml`, so that both are one release.
IMAGE ?= berthmaster:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# More words for the image's build, such as --build-arg BASE=... or --secret id=pip,src=...
IMAGE_OPTIONS ?=
SBOM ?= dist/berthmaster.cdx.json
SBOM_OPTIONS ?=
SBOM_VENV := .venv-sbom
SBOM_READY := $(SBOM_VENV)/.ready
PEERS_VENV := .venv-peers
PEERS_READY := $(PEERS_VENV)/.ready
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

$(SBOM_READY): requirements-sbom.lock
	@test -x $(SBOM_VENV)/bin/python || $(PYTHON) -m venv $(SBOM_VENV)
	@$(SBOM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-sbom.lock
	@touch $@

$(PEERS_READY): requirements-peers.lock
	@echo "[setup] MLServer into $(PEERS_VENV) (half a gigabyte, about a minute)"
	@test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	@$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-peers.lock
	@touch $@

.PHONY: binaries
binaries: $(READY) ## Kubernetes, etcd and kwok into the cache (a cold build takes about 12 minutes)
	@$(RUN)/berthmaster-sandbox binaries

.PHONY: demo
demo: binaries ## a real control plane, the real config, sample pods, and where each landed and why
	@$(RUN)/python -m berthmaster_sandbox.demo

.PHONY: test
test: binaries $(SBOM_READY) ## all tests, against the real control plane too
	@$(RUN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

.PHONY: chaos
chaos: binaries ## faults under load, and an independent count after each (about 20 minutes); OPTIONS="--seed 2"
	@$(RUN)/python -m berthmaster_sandbox.chaos $(OPTIONS)

.PHONY: test-peers
test-peers: binaries $(PEERS_READY) ## tests against a real metrics-server and MLServer, fetched first; from then on `make test` has them too
	@$(RUN)/berthmaster-sandbox binaries --metrics-server
	@$(RUN)/python -m pytest tests/peers tests/end_to_end/test_metrics_server.py

.PHONY: cases
cases: $(READY) ## decision cases: make cases CASES=<file or folder>
	@$(RUN)/python -m berthmaster.cli.cases $(CASES)

.PHONY: rbac
rbac: export BERTHMASTER_AUDIT := $(CURDIR)/.work/audit.jsonl
rbac: binaries ## which rights of config/ the end-to-end tests did not use, by the API server's audit (long)
	@mkdir -p .work
	@$(RUN)/python -m pytest tests/end_to_end
	@$(RUN)/python .ci/rights.py $(BERTHMASTER_AUDIT)

.PHONY: lint
lint: $(READY) ## formatter, linter, types, import direction
	@test ! -e operator/__init__.py && test ! -e webhook/__init__.py
	@$(RUN)/ruff format --check .
	@$(RUN)/ruff check .
	@$(RUN)/mypy
	@$(RUN)/lint-imports

.PHONY: bench
bench: export PYTHONPATH := bench
bench: binaries ## speed figures, side by side on this machine; LONG=1: at full size, for an hour and a half
	@$(RUN)/python bench/decision.py $(if $(LONG),500 5000 50000)
	@$(RUN)/python bench/datasets.py $(if $(LONG),500 5000 50000,500)
	@$(RUN)/python bench/observe_report.py $(if $(LONG),,--nodes 500 --pods 5000 --judge 500)
	@$(RUN)/python bench/power_day.py --nodes $(if $(LONG),30 --days 3 --worlds mixed small modest busy two,20)
	@$(RUN)/python bench/burst.py $(if $(LONG),,--nodes 40 --pods 400)
	@$(RUN)/python bench/memory.py $(if $(LONG),--runs 3,--nodes 1000 --pods 30000)
	@$(RUN)/python bench/admission.py $(if $(LONG),,--nodes 1000 --pods 8000 --rate 100 --seconds 15)
	@$(RUN)/python bench/waiting.py $(if $(LONG),,--nodes 200 --waiting 500 --slots 100 --seconds 5 --shapes 1 100)
	@$(RUN)/python bench/extender.py
	@$(RUN)/python bench/operator_cpu.py $(if $(LONG),,--nodes 500 --pods 4000 --periods 15 --seconds 15)
	@$(if $(LONG),$(RUN)/python bench/operator_cpu.py --sandbox --nodes 500)
	@$(RUN)/python bench/end_to_end.py $(if $(LONG),,--nodes 200 --pods 200 --turns 2)
	@$(if $(LONG),$(RUN)/python bench/end_to_end.py --nodes 5000)
	@$(if $(LONG),$(RUN)/python bench/end_to_end.py --disks --turns 3)
	@$(if $(LONG),$(RUN)/python bench/end_to_end.py --nodes 5000 --zones 8 --turns 3)

.PHONY: sandbox
sandbox: binaries ## a control plane that stays up; prints how to point kubectl at it
	@$(RUN)/berthmaster-sandbox up

# What is made of a commit carries its time, so that it is made the same again.
image sbom: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

.PHONY: image
image: ## container image with docker or buildah, whichever works here
	@if docker info >/dev/null 2>&1; then \
	  DOCKER_BUILDKIT=1 docker build --build-arg SOURCE_DATE_EPOCH -t $(IMAGE) $(IMAGE_OPTIONS) .; \
	elif command -v buildah >/dev/null; then \
	  buildah build --timestamp $$SOURCE_DATE_EPOCH --build-arg SOURCE_DATE_EPOCH=$$SOURCE_DATE_EPOCH -t $(IMAGE) $(IMAGE_OPTIONS) .; \
	else \
	  echo "[image] neither a running docker nor buildah is here: install one of them"; exit 1; \
	fi

.PHONY: sbom
sbom: $(SBOM_READY) ## what the image's Python packages are, as CycloneDX JSON in dist/
	@mkdir -p $(dir $(SBOM))
	@$(SBOM_VENV)/bin/python -W ignore::UserWarning -m cyclonedx_py requirements requirements-runtime.lock --pyproject pyproject.toml --output-reproducible $(SBOM_OPTIONS) -o $(SBOM)
	@echo "[sbom] $(SBOM)"

.PHONY: licences
licences: $(READY) ## write THIRD_PARTY.md, the licences of the image's packages
	@$(RUN)/python .ci/licences.py requirements-runtime.lock $(or $(LICENCES),THIRD_PARTY.md)

.PHONY: crds
crds: $(READY) ## write crds/ from the models
	@$(RUN)/python -m berthmaster.api.crds crds

.PHONY: lock
lock: $(READY) ## resolve the lock files anew (needs uv)
	@$(LOCK) pyproject.toml --all-extras -o requirements.lock
	@$(LOCK) pyproject.toml --extra operator --extra grpc --extra webhook -c requirements.lock -o requirements-runtime.lock
	@$(RUN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | $(LOCK) - -c requirements.lock -o requirements-build.lock
	@$(LOCK) --group sbom -o requirements-sbom.lock
	@$(LOCK) --group peers -o requirements-peers.lock

.PHONY: clean
clean: ## remove what the targets above made in this folder
	@rm -rf $(VENV) $(SBOM_VENV) $(PEERS_VENV) .work .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
