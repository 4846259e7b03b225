# The entry points of a checkout. Owns no logic: cargo builds, and .ci/setup installs what a machine
# lacks besides Rust (a PostgreSQL server's programs and a C compiler); it does nothing where all of
# that is present. `make` alone lists the targets.

CARGO ?= cargo
# How many seconds the demo and the soak run; unset: until Ctrl-C (the demo without a terminal: 30).
DURATION ?=
# The seed of the soak's first round; unset: random.
SEED ?=
# Not empty: the soak compares what readers see with the definition.
READS ?=
# Options for the benchmarks: make bench-latency BENCH='--seconds 60'
BENCH ?=

# Where install and uninstall put their files, below DESTDIR, which a package builder sets.
PREFIX ?= /usr/local
DESTDIR ?=
# The profile of the binary that install builds; or, in BINARY, a binary that is built already.
PROFILE ?= release
BINARY ?=
# Whom the Debian package names as its maintainer; unset: the one in Cargo.toml.
MAINTAINER ?=

# The PostgreSQL versions of test-versions, and names or prefixes of its tests; unset: all.
VERSIONS ?=
TESTS ?=

.PHONY: help demo test test-versions soak lint setup bench install uninstall deb

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

demo: ## Run everything on a private PostgreSQL: make demo [DURATION=20]
	@.ci/setup
	@$(CARGO) build --locked --profile demo --package status-indexer --package status-indexer-demo
	@exec $(CARGO) run --locked --quiet --profile demo --package status-indexer-demo -- $(if $(DURATION),--duration $(DURATION))

test: ## Run all tests, on private PostgreSQL servers
	@.ci/setup test
	$(CARGO) test --workspace --locked

test-versions: ## Run the tests on each supported version: make test-versions [VERSIONS="12 18"] [TESTS="migrate::"]
	@.ci/setup versions
	@VERSIONS='$(VERSIONS)' TESTS='$(TESTS)' .ci/test-versions

soak: ## Run random histories with faults until one fails: make soak [DURATION=600] [SEED=7] [READS=1]
	@.ci/setup test
	@$(CARGO) build --locked --package status-indexer
	@exec $(CARGO) run --locked --quiet --package testkit --bin soak -- $(if $(DURATION),--seconds $(DURATION)) $(if $(SEED),--seed $(SEED)) $(if $(READS),--reads)

lint: ## Check format, scripts, dependencies, lints and documentation
	@.ci/setup lint
	$(CARGO) fmt --check
	.ci/shellcheck
	.ci/unused-dependencies
	$(CARGO) clippy --workspace --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --locked --no-deps --document-private-items
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked --log-level error check --hide-inclusion-graph bans licenses sources; \
	else \
		echo "cargo-deny is not installed: .deny.toml is not checked"; \
	fi

bench: ## Run all benchmarks; one of them: make bench-latency, bench-drain, bench-sweep, ...
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

# Cargo's directory of the profile dev has another name.
built = $(or $(CARGO_TARGET_DIR),target)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/status-indexer
binary = $(or $(BINARY),$(built))
bin = $(DESTDIR)$(PREFIX)/bin
man = $(DESTDIR)$(PREFIX)/share/man/man1
bash = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
zsh = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
fish = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

install: ## Install the binary, its manual pages and completions: make install [PREFIX=/usr/local] [DESTDIR=] [BINARY=]
	$(if $(BINARY),,$(CARGO) build --locked --profile $(PROFILE) --package status-indexer)
	install -d '$(bin)' '$(man)' '$(bash)' '$(zsh)' '$(fish)'
	install -m 755 '$(binary)' '$(bin)/status-indexer'
	umask 022 && '$(binary)' man '$(man)'
	umask 022 && '$(binary)' completions bash >'$(bash)/status-indexer'
	umask 022 && '$(binary)' completions zsh >'$(zsh)/_status-indexer'
	umask 022 && '$(binary)' completions fish >'$(fish)/status-indexer.fish'

uninstall: ## Remove what install has installed, with the same PREFIX and DESTDIR
	rm -f '$(bin)/status-indexer' '$(man)/status-indexer.1' '$(man)'/status-indexer-*.1
	rm -f '$(bash)/status-indexer' '$(zsh)/_status-indexer' '$(fish)/status-indexer.fish'

deb: ## Build the Debian package with cargo-deb: make deb [MAINTAINER="Name <address>"]
	$(CARGO) build --locked --release --package status-indexer
	MAINTAINER='$(MAINTAINER)' .ci/deb

setup: ## Install what the demo and the tests need, where it is missing
	@.ci/setup test
