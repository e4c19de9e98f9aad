# Every target works from a fresh clone: the virtual environment is made on first use.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
STAMP := .venv/.installed
ARGS ?=
# The rooms of values and contracts; naming them keeps the collecting of all others out.
QUICK := tests/policies tests/decisions tests/api tests/observe tests/volumes tests/wire tests/cbt/test_codes.py tests/cbt/test_checks.py tests/repository/test_crypto.py tests/test_extents.py tests/test_tally.py
# Two at a time, a file to a worker: most tests wait for processes and timers, not for the CPU.
PARALLEL ?= -n 2 --dist loadfile

.PHONY: help install demo test quick check static lint types contracts gen gen-check bench real-tools lock-server test-real test-system requests clean

# Bytecode is kept, whatever the shell says: movers, controllers and commands are processes of their own, in tests by the
# hundred, and each would compile every module anew (25 tests of controllers and movers: 36 s of processor time, not 20).
export PYTHONDONTWRITEBYTECODE :=
export KUBEBUILDER_ASSETS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tidemark/tools/bin
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP) ## Make the virtual environment in .venv/

$(STAMP): uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Tidemark needs Python 3.11 or newer; run 'make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)'" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(UV) sync --quiet --frozen --all-extras --compile-bytecode
	@$(BIN)/python -m compileall -q orchestrator policies # containers of the sandbox see it read-only
	@touch $@

demo: $(STAMP) ## Protect real volumes in a sandbox cluster, end to end; ARGS="--json FILE --keep ..."
	@$(BIN)/tidemark demo $(ARGS)

test: $(STAMP) ## All hermetic tests, under 3 minutes
	@$(BIN)/python -m pytest -q $(PARALLEL) -m "not real and not system and not chaos" $(ARGS)

quick: $(STAMP) lint types contracts ## Lint, types, contracts and pure tests, under 20 s
	@$(BIN)/python -m pytest -q -m quick $(QUICK) $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

contracts: $(STAMP)
	@$(BIN)/lint-imports --no-cache

gen: $(STAMP) ## Regenerate wire code, CRDs and the chart's copies
	@$(BIN)/python -m orchestrator.api.crd charts/tidemark/crds
	@sh proto/generate.sh $(BIN)
	@sh tests/clients/cbt/generate.sh $(BIN)

gen-check: $(STAMP) ## Fail if a generated file is stale
	@$(BIN)/python -m orchestrator.api.crd --check charts/tidemark/crds
	@sh proto/generate.sh $(BIN) --check
	@sh tests/clients/cbt/generate.sh $(BIN) --check

static: lint types contracts gen-check ## All of make check that runs no test

check: static test ## All that the gate runs on code

bench: $(STAMP) ## Benchmarks; ARGS="--only NAME"
	@$(BIN)/python -m benchmarks $(ARGS)

real-tools: ## Build Kubernetes, its tools, object stores and Go clients from pinned modules (cached)
	@sh tests/real/tools/build.sh

lock-server: ## Build MinIO, the second server for object lock: TIDEMARK_LOCK_SERVER=minio make test-real ARGS=tests/repository/test_object_lock.py
	@sh tests/real/tools/build.sh lock-server

test-real: $(STAMP) ## Suites against real servers and tools (make real-tools first)
	@$(BIN)/python -m pytest -q -m real $(ARGS)

requests: $(STAMP) ## Count the controller's requests per recovery point on a real cluster; rewrites docs/requests.md
	@$(BIN)/python -m tests.real.requests --write docs/requests.md

test-system: $(STAMP) ## A whole installation: deletions, bad input, kills at seeded random moments; minutes
	@$(BIN)/python -m pytest -q $(PARALLEL) -m "(system or chaos) and not real" $(ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis
