# One way to do each thing. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
BASE_PYTHON ?= python3
# own: the cluster on this machine. current: the context that kubectl uses now, with images in REGISTRY.
CLUSTER ?= own
REGISTRY ?=
# 1: the trainer image for GPU nodes (vLLM for CUDA).
CUDA ?=

export PYTHONPATH := tests
export HF_HUB_DISABLE_TELEMETRY := 1
# Beside everything else that the project keeps, so that make clean gives it back.
export UV_CACHE_DIR ?= $(or $(FINETUNE_CACHE),$(HOME)/.cache/finetune-operator)/uv

.PHONY: help
help: ## Show this help.
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*##/ {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use
.PHONY: demo
demo: $(VENV)/.ready ## From nothing to a fine-tuned model on a real Kubernetes (CLUSTER=own|current, REGISTRY=host/path for current).
	$(PYTHON) -m demo up --cluster $(CLUSTER) $(if $(REGISTRY),--registry $(REGISTRY))

.PHONY: demo-down
demo-down: $(VENV)/.ready ## Stop everything that make demo started.
	$(PYTHON) -m demo down --cluster $(CLUSTER)

.PHONY: run
run: $(VENV)/.ready ## Run the operator as a process against the current kubectl context (TRAINER_IMAGE=reference).
	$(VENV)/bin/finetune-operator run --progress-via proxy --trainer-image "$${TRAINER_IMAGE:?the reference that make images printed for finetune-trainer}"

.PHONY: images
images: $(VENV)/.ready ## Build and push the operator and trainer images (REGISTRY=host/path, CUDA=1 for GPU nodes).
	$(PYTHON) -m devcluster.images push $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(CUDA),--cuda)

##@ Develop
.PHONY: test
test: $(VENV)/.ready ## All tests: unit, integration on a real API server, end to end on a real node.
	$(VENV)/bin/pytest tests/unit tests/integration tests/e2e

.PHONY: test-quality
test-quality: $(VENV)/.ready ## Train a real model with every method on this machine's CPU and show what it learned.
	$(VENV)/bin/pytest tests/quality

.PHONY: lint
lint: $(VENV)/.ready ## Format and lint.
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

.PHONY: generate
generate: $(VENV)/.ready ## Write the CRD and the reference from the models.
	$(PYTHON) -m finetune_api.generate

.PHONY: verify
verify: $(VENV)/.ready ## Everything that is checked without running: format, lint, types, layers, generated files.
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) -m finetune_api.generate --check

.PHONY: bench
bench: $(VENV)/.ready ## Measure the operator: 200 jobs at once on a real control plane.
	$(PYTHON) -m bench.operator

.PHONY: bench-stability
bench-stability: $(VENV)/.ready ## Measure what the stability rules find and miss.
	$(PYTHON) -m bench.stability

.PHONY: bench-gpu
bench-gpu: $(VENV)/.ready ## On a GPU machine: our trainer beside bare TRL, speed and memory.
	$(PYTHON) -m bench.gpu

CALIBRATION := $(or $(FINETUNE_CACHE),$(HOME)/.cache/finetune-operator)/calibration.json

.PHONY: calibrate
calibrate: $(VENV)/.ready ## On a GPU machine: measure peaks of memory, and fit the planner's constants to half of them.
	mkdir -p $(dir $(CALIBRATION)) && rm -f $(CALIBRATION)
	-$(PYTHON) -m bench.gpu --suite calibration --ours --output $(CALIBRATION)
	$(PYTHON) -m bench.calibrate $(CALIBRATION)

LOCK := $(VENV)/bin/uv pip compile pyproject.toml --quiet --no-header --no-emit-index-url --generate-hashes --python-version 3.11

.PHONY: lock
lock: $(VENV)/.ready ## Resolve the lock files anew (UPGRADE=--upgrade for newer versions).
	$(LOCK) $(UPGRADE) --extra trainer --extra rollout-cpu --override trainer-image/requirements-overrides.txt -o trainer-image/requirements.txt
	$(LOCK) $(UPGRADE) --extra trainer --extra rollout -o trainer-image/requirements-cuda.txt
	$(LOCK) $(UPGRADE) --universal --extra operator -c trainer-image/requirements.txt -o operator/requirements.txt
	$(LOCK) $(UPGRADE) --universal --extra operator --extra cli --extra trainer --extra dev -c trainer-image/requirements.txt -o tests/requirements.txt

.PHONY: clean
clean: ## Stop what runs and give all disk space back.
	if [ -x $(PYTHON) ]; then $(PYTHON) -m devcluster clean; fi
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

# The stamp depends on what is installed, so that a changed lock file is followed without being asked.
$(VENV)/.ready: tests/requirements.txt pyproject.toml
	test -x $(VENV)/bin/pip || $(BASE_PYTHON) -m venv --clear $(VENV) || { echo "install Python's venv module: apt-get install python3-venv" >&2; exit 1; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check "$$(sed -nE 's/^(uv==[^ ]+).*/\1/p' tests/requirements.txt)"
	$(VENV)/bin/uv pip sync --quiet --require-hashes tests/requirements.txt
	$(VENV)/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
