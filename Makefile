# Everything runs in .venv, which `make` fills by itself and leaves alone while pyproject.toml and constraints.txt stay.
#   PYTHON=python3.12 make test        another interpreter (3.11 or newer)
#   make test ARGS='-k fencing -x'     what to run, in pytest's words
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu make test     take torch from there (a CPU build is far smaller)

PYTHON ?= python3
PYTHONS := 3.11 3.12 3.13
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
# As many as compute at a time, and two for tests that wait (tests/workers.py).
WORKERS ?= $(shell n=$$(nproc 2> /dev/null || echo 2); echo $$((n + 2)))
TORCH_INDEX ?=
MINUTES ?= 30
SEEDS ?= 20000
SEED ?=
PART ?=

PIP := $(BIN)/python -m pip --disable-pip-version-check
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
# No compiler is needed: a pin without a wheel fails when it is set up.
export PIP_ONLY_BINARY := :all:
# Tests start hundreds of processes, which load what the first has compiled.
unexport PYTHONDONTWRITEBYTECODE
PACKAGES := proto/relay runfile storage coordinator agent trainers relayctl
CODE := $(wildcard $(PACKAGES) proto/generate.py docs/generate.py migrations benchmarks examples tests)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup extras pythons demo test test-all simulate mutants soak kills check format proto docs schemas matrix baseline bench gpu clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Create or update .venv (every other target does it when needed)

extras: $(READY) ## Add what the extras `tasks` and `evaluate` bring (built from source in part: needs a C compiler)
	@PIP_ONLY_BINARY='' $(PIP) install --quiet --editable '.[tasks,evaluate]'

pythons: $(READY) ## Show that the types hold at every supported Python, and that every pin has a wheel for it
	@for version in $(PYTHONS); do echo "Python $$version"; $(BIN)/mypy --python-version $$version $(CODE) || exit; done
	@mkdir -p .build && sed '/^# Only the extras/,$$d; /^torch==/d' constraints.txt > .build/wheels.txt
	@for version in $(PYTHONS); do \
		$(PIP) install --dry-run --ignore-installed --no-deps --quiet --python-version $$version --target .build/wheels \
			--requirement .build/wheels.txt && echo "Python $$version: a wheel for every pin" || exit; done

demo: $(READY) ## Train a small model on two hosts, kill one in the middle, see the other finish
	@$(BIN)/relayctl demo $(ARGS)

test: $(READY) ## Run the tests of a commit: minutes
	@$(BIN)/python -m pytest -n $(WORKERS) --durations=10 $(ARGS)

test-all: $(READY) ## Run every test, and SEEDS (20000) seeds of the simulator: hours
	@$(BIN)/python -m pytest -n $(WORKERS) --durations=10 --thorough --seeds=$(SEEDS) $(ARGS)

simulate: $(READY) ## Run the lease protocol's simulator on SEEDS (20000) seeds
	@$(BIN)/python -m tests.simulation seeds 0 $$(($(SEEDS) - 1))

mutants: $(READY) ## Remove each rule of the lease protocol, and show the seed that notices
	@$(BIN)/python -m tests.simulation mutants

soak: $(READY) ## Break deployments in every way, for MINUTES (30), until one breaks a promise (SEED=7: as before)
	@$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

kills: $(READY) ## Kill agents, shims, trainers, replicas and Postgres a hundred times over twenty runs (SEED=7)
	@$(BIN)/python -m tests.faults.soak --kills 100 --runs 20 $(if $(SEED),--seed $(SEED)) $(ARGS)

check: $(READY) ## Lint and type-check everything: code, contract, generated files, deploy/
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python proto/generate.py --check
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python proto/generate.py --image .build/contract.binpb
	@$(BIN)/buf lint .build/contract.binpb
	@$(BIN)/buf breaking .build/contract.binpb --against proto/baseline.binpb
	@$(BIN)/hadolint deploy/Dockerfile.*
	@$(BIN)/shellcheck deploy/*.sh .ci/run
	@if command -v docker-compose > /dev/null; \
		then RELAY_SHARED_SECRET=x POSTGRES_PASSWORD=x docker-compose -f deploy/compose.yaml config --quiet; \
		else echo "skipped: deploy/compose.yaml is not checked (no docker-compose here)"; fi

format: $(READY) ## Format the code and sort its imports
	@$(BIN)/ruff check --select I --fix --quiet .
	@$(BIN)/ruff format .

proto: $(READY) ## Generate the code beside proto/relay/v1/*.proto
	@$(BIN)/python proto/generate.py

docs: $(READY) ## Generate docs/errors.md and the map in docs/contributing/architecture.md from the code
	@$(BIN)/python docs/generate.py

matrix: $(READY) ## Train every method in every way that this machine can, and write docs/methods.md's tables (ARGS='--only epochs')
	@$(BIN)/python -m tests.trainers.matrix $(ARGS)

schemas: $(READY) ## Generate the methods' option schemas from the training libraries
	@$(BIN)/python -m trainers.schemas

baseline: $(READY) ## Take today's contract as the one that later changes may not break (at a release)
	@$(BIN)/python proto/generate.py --image .build/contract.binpb
	@$(BIN)/buf build .build/contract.binpb --exclude-source-info --output proto/baseline.binpb

bench: $(READY) ## Measure latency, overhead and recovery (about 35 minutes; ARGS="start shim" or ARGS=--quick)
	@$(BIN)/python -m benchmarks $(ARGS)

gpu: $(READY) ## Show what only a GPU can, in parts of two minutes (PART=fsdp2; ARGS=--cpu: do the parts work?)
	@$(BIN)/python -m benchmarks.gpu $(PART) $(ARGS)

clean: ## Remove what was built, .venv included
	rm -rf $(VENV) .demo .build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first: the largest download, and the only one that may come from an index of its own.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Relay needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 …" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) install --quiet --editable '.[coordinator,agent,trainers,demo,dev]'
	@touch $@
