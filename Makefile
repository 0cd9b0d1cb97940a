# `make` explains itself; `make up` is where a newcomer starts.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
DENY_VERSION := 0.20.2
TOOLS := target/tools
# Arguments for `cooper up`, e.g. make up ARGS="--listen 127.0.0.1:50052"
ARGS ?=
# Simulated clusters of `make sim`, and the first seed.
SEEDS ?= 1000
FROM ?= 1

# What `make chaos` does: kills by schedule, tasks at least, and the seed of a run to have again.
KILLS ?= 100
TASKS ?= 1000
SEED ?=

# Names of repair cases or parts of them, --no-kills, --only-kills: make repair-cases CASES="pip --no-kills"
CASES ?=

# Of docker-compose.yml; docker-compose.dev.yml has pre-built binaries mounted.
COMPOSE := docker compose
DEV := docker compose -f docker-compose.dev.yml
# What belongs to profiles is stopped, shown and removed as well.
EVERY := $(COMPOSE) --profile multi-worker --profile stack

.PHONY: help up build test lint fmt docs bench chaos sim repair-cases watch dist dist-test \
	docker-build docker-up docker-up-dev docker-up-multi docker-up-stack docker-upgrade docker-down docker-logs docker-ps docker-restart \
	docker-restart-worker docker-shell-worker docker-shell-coordinator docker-test docker-test-multi docker-clean docker-clean-all

help: ## Explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: build ## Build, then run a coordinator and a worker here (Ctrl-C stops them; ARGS="…" are passed on)
	exec target/release/cooper up $(ARGS)

build: ## Build target/release/cooper
	$(CARGO) build --release --locked --bin cooper

test: ## Everything that proves Cooper: units, properties, real processes, real Docker
	scripts/test.sh

lint: $(TOOLS)/bin/cargo-deny ## Formatting, clippy without warnings, licences and sources of dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(TOOLS)/bin/cargo-deny --locked check licenses bans sources

fmt: ## Format the code
	$(CARGO) fmt --all

docs: ## Write docs/api.md anew from the contract; a test says when it is not as it should be
	COOPER_WRITE_DOCS=1 $(CARGO) test --locked -p cooper-coordinator --lib the_page_of_the_api

sim: ## Simulate whole clusters with faults, one for each seed (make sim SEEDS=5000 FROM=1); a failed seed shows what happened
	$(CARGO) run --release --locked -p cooper-sim -- --seeds $(SEEDS) --from $(FROM)

bench: ## Measure against budgets and peers; prints a table, writes target/bench/latest.json
	$(CARGO) run --release --locked -p cooper-bench

chaos: ## Faults in real processes, and a check that nothing is lost: KILLS=n TASKS=n SEED=n (root: all kinds of faults)
	$(CARGO) build --locked --workspace --bins --features cooper/failpoints
	target/debug/cooper-chaos --config chaos/short.toml --kills $(KILLS) --tasks $(TASKS) $(if $(SEED),--seed $(SEED))

repair-cases: ## Break and repair the stacks of tests/repair-cases on this machine's Docker; prints a table (CASES="NAME…" for some)
	scripts/ensure-engine.sh && scripts/base-images.sh
	$(CARGO) build --locked --workspace --bins --features cooper/failpoints
	target/debug/repair_cases $(CASES)

watch: ## Build and restart the cluster of docker-up-dev whenever sources change
	scripts/watch.sh

dist: ## Release: binary, completions, manual pages, systemd units, checksums, Debian package, in dist/
	scripts/dist.sh

dist-test: ## Install the Debian package in a container with systemd, and use, upgrade and remove it (needs make docker-build)
	scripts/test-package.sh

docker-build: ## Build the images of coordinator, worker and stack worker; prints time and sizes
	scripts/docker-build.sh

docker-up: ## Start coordinator and worker; makes tokens and certificates at the first start (ARGS="--scale worker=3")
	scripts/docker-up.sh $(ARGS)

docker-up-multi: ## Start coordinator and two workers
	COMPOSE_PROFILES=multi-worker scripts/docker-up.sh $(ARGS)

docker-up-stack: ## Start coordinator, worker, and a worker that repairs the stack in COOPER_STACK_DIR
	COMPOSE_PROFILES=stack scripts/docker-up.sh $(ARGS)

docker-up-dev: ## Start with mounted binaries and workspaces in ./tmp/dev
	scripts/docker-up-dev.sh

docker-upgrade: ## Bring the running cluster to the images that were built last; sessions are saved and go on
	scripts/docker-upgrade.sh

docker-down: ## Stop and remove containers; sessions and data stay
	$(EVERY) down --remove-orphans

docker-logs: ## Follow the logs of all services
	$(EVERY) logs -f

docker-ps: ## Show the state of containers
	$(EVERY) ps

docker-restart: ## Restart all services
	$(EVERY) restart

docker-restart-worker: ## Restart the workers; what the sessions hold comes back
	$(EVERY) restart $$($(EVERY) ps --services | grep worker)

docker-shell-worker: ## Open a shell in a worker's container
	$(COMPOSE) exec worker bash

docker-shell-coordinator: ## Open a shell in the coordinator's container
	$(COMPOSE) exec coordinator sh

docker-test: ## Test coordinator and worker in containers: sessions, packages, faults, upgrade
	scripts/test-docker-integration.sh

docker-test-multi: ## Test several workers in containers: placement, isolation, scaling, partition
	scripts/test-multi-worker.sh

docker-clean: ## Remove containers, volumes with all data, secrets and temporary files
	$(EVERY) down --volumes --remove-orphans
	$(DEV) down --volumes --remove-orphans
	rm -rf deploy/secrets
	# Written by root of a container.
	rm -rf tmp/dev 2>/dev/null || docker run --rm -v "$$PWD/tmp:/at" debian:bookworm-slim rm -rf /at/dev

docker-clean-all: docker-clean ## The same, and the images
	docker image rm -f $$(docker image ls -q --filter reference='cooper-coordinator' --filter reference='cooper-worker' \
		--filter reference='cooper-stack-worker' | sort -u) 2>/dev/null || true

# The one on PATH if there is one, else built once (a few minutes).
$(TOOLS)/bin/cargo-deny:
	@mkdir -p $(TOOLS)/bin
	@if found=$$(command -v cargo-deny); then ln -s "$$found" $@; else \
		$(CARGO) install cargo-deny --version $(DENY_VERSION) --locked --root $(TOOLS); fi
