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

.PHONY: help up build test lint fmt bench chaos sim repair-cases

help: ## Explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

# The one on PATH if there is one, else built once (a few minutes).
$(TOOLS)/bin/cargo-deny:
	@mkdir -p $(TOOLS)/bin
	@if found=$$(command -v cargo-deny); then ln -s "$$found" $@; else \
		$(CARGO) install cargo-deny --version $(DENY_VERSION) --locked --root $(TOOLS); fi
