# What can be done with a checkout, one word each. Owns no logic: cargo builds, .ci/setup brings what
# a machine lacks beside Rust (a PostgreSQL server's programs and a C compiler), and does nothing
# where all is there. `make` alone says what there is.

CARGO ?= cargo
# Seconds that the demo and the soak run; unset: until Ctrl-C (the demo without a terminal: as long as
# it says itself).
DURATION ?=
# What the soak's first round is made from; unset: at random.
SEED ?=

.PHONY: help demo test soak lint setup bench

# What a benchmark is told beside its name: make bench-latency BENCH='--seconds 60'
BENCH ?=

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: ## Everything at work on a private PostgreSQL: make demo [DURATION=20]
	@.ci/setup
	@exec $(CARGO) run --release --locked -- demo $(if $(DURATION),--duration $(DURATION))

test: ## All tests, on private PostgreSQL servers
	@.ci/setup test
	$(CARGO) test --locked

soak: ## Random histories with faults in between, until one ends wrong: make soak [DURATION=600] [SEED=7]
	@.ci/setup test
	@exec $(CARGO) test --locked --bench soak -- $(if $(DURATION),--seconds $(DURATION)) $(if $(SEED),--seed $(SEED))

lint: ## Format, lints, scripts, dependencies and documentation, with warnings as errors
	@.ci/setup lint
	$(CARGO) fmt --check
	.ci/shellcheck
	.ci/unused-dependencies
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked --log-level error check --hide-inclusion-graph bans licenses sources; \
	else \
		echo "cargo-deny is not installed: .deny.toml is not checked"; \
	fi

bench: ## All benchmarks; one of them: make bench-latency, -drain, -sweep, ...
	@.ci/setup bench
	$(CARGO) bench --locked --bench bench -- all $(BENCH)

bench-latency: .bench-latency
bench-drain: .bench-drain
bench-sweep: .bench-sweep
bench-writers: .bench-writers
bench-fat-run: .bench-fat-run
bench-idle: .bench-idle
bench-backfill: .bench-backfill
bench-verify: .bench-verify
bench-reconciler: .bench-reconciler
bench-pages: .bench-pages
bench-api: .bench-api

.bench-%:
	@.ci/setup bench
	$(CARGO) bench --locked --bench bench -- $* $(BENCH)

setup: ## Install what the demo and the tests need, where it is missing
	@.ci/setup test
