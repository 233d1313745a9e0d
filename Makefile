# SPDX-License-Identifier: Apache-2.0
# `make help` is the contract: every target that people may call is documented there.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# embedded (default) | kind (where Docker runs) | current (the current kubectl context)
CLUSTER ?= embedded
PY      := .venv/bin/python
PYTEST  := $(PY) -m pytest

export PYTHONUNBUFFERED := 1

##@ See it

.PHONY: demo
demo: setup ## One manifest, one served model on a real cluster; ends with an answer from the model
	@$(PY) -m dev demo --cluster $(CLUSTER)

.PHONY: demo-down
demo-down: setup ## End and remove everything that the demo started
	@$(PY) -m dev demo --cluster $(CLUSTER) --down

##@ Check it

.PHONY: test
test: verify binaries ## All tests this machine can run; what it cannot run is skipped with its reason
	$(PYTEST) tests/unit tests/dataplane -n 3 --dist loadfile
	$(PYTEST) tests/controlplane -n 3 --dist loadfile
	$(PYTEST) tests/serving
	$(PYTEST) tests/cluster

# Before the tests, because a first build takes longer than any test may.
.PHONY: binaries
binaries: setup
	@$(PY) -m dev binaries >/dev/null

.PHONY: test-fast
test-fast: setup ## Unit tests that need no process and no second
	$(PYTEST) tests/unit -m "not slow" -n 2 --dist loadfile -q

.PHONY: verify
verify: setup ## Generated files are current, code is formatted, typed and keeps its layers
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo
	@$(PY) -m sovereign_operator.crd --check
	@$(PY) -m dev.chart_crds --check
	@$(PY) -m dev.reference_docs --check

##@ Measure it

.PHONY: bench-mirror
bench-mirror: setup ## Hub to registry, 2 GiB in 8 files, as ratios to a bare pipe and to other tools
	$(PY) -m bench.mirror

.PHONY: bench-airgap
bench-airgap: setup ## Every verb that moves bytes, as ratios to bare pipes and to other tools; bytes and memory too
	$(PY) -m bench.airgap

.PHONY: bench-delivery
bench-delivery: setup ## Weights to a node, a pod's second start, the next revision, node to node; as ratios
	$(PY) -m bench.delivery

.PHONY: bench-reconcile
bench-reconcile: setup ## 500 objects through the operator against the same number of bare applies
	$(PY) -m bench.reconcile

##@ Change it

.PHONY: setup
setup: ## What every target needs: system packages (as root on Debian/Ubuntu) and .venv from hashed locks
	@sh dev/bootstrap.sh

.PHONY: generate
generate: setup ## Rewrite CRDs, chart copies and reference documents from the Python types
	$(PY) -m sovereign_operator.crd
	$(PY) -m dev.chart_crds
	$(PY) -m dev.reference_docs

.PHONY: format
format: setup ## Format and fix what a tool can fix
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.PHONY: lock
lock: setup ## Resolve every lock file again
	sh locks/compile.sh

.PHONY: clean
clean: ## Remove what was built inside this folder (caches of Go builds and images stay)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist

.PHONY: help
help: ## This text
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
	  /^[a-z][a-z-]*:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nCLUSTER=embedded|kind|current chooses where `make demo` runs (now: %s).\n' '$(CLUSTER)'
