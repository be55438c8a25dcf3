# `make help` lists the targets. Everything that a target needs is set up by it: each may be the first command.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
PYTHON := .venv/bin/python
# 3.11 means 3.11.0: what only its first patch releases need (Debian 12 has 3.11.2) is pinned too.
LOCK := .venv/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: debian .venv/setup-stamp node_modules/setup-stamp ## install everything that the suite needs (again only what changed)

.PHONY: debian
debian:
	@tools/setup/debian.sh

.venv/setup-stamp: requirements/dev.txt pyproject.toml tools/setup/python.sh | debian
	@tools/setup/python.sh
	@touch $@

node_modules/setup-stamp: package.json package-lock.json tools/setup/node.sh | debian
	@tools/setup/node.sh
	@touch $@

.PHONY: up
up: setup ## start the suite on this machine and say what runs where
	@$(PYTHON) -m tools.stack up

.PHONY: up-tracing
up-tracing: setup ## the same, with Jaeger's collectors and UI in front of tracestore
	@$(PYTHON) -m tools.stack up --jaeger

.PHONY: down
down: setup ## end it
	@$(PYTHON) -m tools.stack down

.PHONY: demo
demo: setup ## from a wallet to proofs that verify offline, in about a minute
	@$(PYTHON) -m tools.demo

.PHONY: test
test: setup ## format, lint, types, imports, generated files, unit and integration tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	tools/generate_protos.sh --check
	$(PYTHON) -m tools.generate --check
	$(PYTHON) -m tools.licences --check
	$(PYTHON) -m pytest tests/unit tests/integration

.PHONY: bench
bench: setup ## measure; table on screen, build/bench.json
	@$(PYTHON) -m tools.bench

N ?= 2000
.PHONY: chaos
chaos: setup ## kill, pause, lie and reorganise under load, then count; N=transfers, RATE=a second, SEED=replays a run
	@$(PYTHON) -m tools.chaos --transfers $(N) $(if $(RATE),--rate $(RATE)) $(if $(SEED),--seed $(SEED))

.PHONY: format
format: setup ## format the code
	.venv/bin/ruff check --fix --quiet .
	.venv/bin/ruff format --quiet .

.PHONY: generate
generate: setup ## write what is derived: span attributes, errors, licences
	$(PYTHON) -m tools.generate
	$(PYTHON) -m tools.licences

.PHONY: protos
protos: setup ## regenerate the stubs beside the .proto files
	tools/generate_protos.sh

.PHONY: lock
lock: setup ## pin every package anew, with hashes
	$(LOCK) --upgrade requirements/services.in -o requirements/services.txt
	$(LOCK) --upgrade requirements/dev.in -o requirements/dev.txt
	npm install --ignore-scripts --package-lock-only --no-audit --no-fund

.PHONY: clean
clean: ## end the stack and remove everything that was made here
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m tools.stack down; fi
	rm -rf .venv node_modules build .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
