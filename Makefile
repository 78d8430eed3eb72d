# Everything that is run here or in CI is a target of this file; `make help` lists them.
#
#   RUNTIME=docker|process   where tenants run; by default Docker, never processes by themselves
#   SQ_VERSION=0.5.0         another version of SQ than 0.6.0
#   FUZZ_SECONDS=20          how long each fuzz target runs

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Exports RUNTIME and SQ_VERSION only if they are set: programs take an empty value for a setting.
$(foreach name,RUNTIME SQ_VERSION,$(if $($(name)),$(eval export $(name))))
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Native builds all choose the same packages, so that features are resolved once and nothing is built
# twice.
INTEGRATION := cargo run --release --quiet --bin integration --
# Enables Envoy in a container. On in every test build, so that both runtimes share one build.
TEST_FEATURES := --features integration/containers
DOCKER_ANSWERS := timeout 5 docker version >/dev/null 2>&1

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## ---- set-up and build

.PHONY: setup
setup: ## everything that is needed beside the sources, into .tools/ and the toolchain
	@scripts/setup.sh

.PHONY: setup-test
setup-test: ## the checks of the set-up, a hundred times
	@python3 scripts/tests/test_setup.py --quiet
	@python3 scripts/tests/test_advisories.py --quiet

.PHONY: setup-run
setup-run:
	@scripts/setup.sh wasm envoy sq images

# Shortens file names in panic messages, so that the module is the same wherever it is built.
REMAP := --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo \
	--remap-path-prefix=$(CURDIR)=/sq-gateway

# $(call wasm,PACKAGE,FLAGS,RESULT) builds one filter and replaces the result atomically.
define wasm
CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS="$(REMAP)" \
	cargo build --package $(1) $(2) --profile wasm --target wasm32-wasip1
@mkdir -p target && cp $(TARGET_DIR)/wasm32-wasip1/wasm/$(subst -,_,$(1)).wasm target/$(3).new
@mv target/$(3).new target/$(3)
endef

.PHONY: setup-wasm
setup-wasm:
	@scripts/setup.sh wasm

.PHONY: wasm
wasm: setup-wasm ## the filter that Envoy loads, as target/filter.wasm
	$(call wasm,filter,,filter.wasm)

# Panics on request of a test's header; never shipped.
.PHONY: wasm-test-panic
wasm-test-panic: setup-wasm
	$(call wasm,filter,--features test-panic,filter-test-panic.wasm)

# Baselines of the benchmark: a filter that does nothing, and ours without limits.
.PHONY: wasm-bench
wasm-bench: setup-wasm
	$(call wasm,empty-filter,,empty-filter.wasm)
	$(call wasm,filter,--features unlimited,filter-unlimited.wasm)
	$(call wasm,filter,--features unlimited-with-headers,filter-unlimited-with-headers.wasm)

.PHONY: binaries
binaries:
	cargo build --release --bins

## ---- the dev stack

.PHONY: run
run: setup-run wasm binaries ## the whole gateway on https://localhost:8443, until Ctrl-C
	@exec $(INTEGRATION) stack

.PHONY: run-detached
run-detached: setup-run wasm binaries ## the same in the background; returns when it is ready
	@exec $(INTEGRATION) stack --detach

.PHONY: stop
stop: ## ends the stack that run-detached started
	@exec $(INTEGRATION) stop

## ---- tests

.PHONY: test
test: setup setup-test fmt-check policy tidy lint doc wasm envoy-validate wasm-test test-process test-bench fuzz-briefly ## all that must pass
	@if $(DOCKER_ANSWERS); then $(MAKE) integration-test; else \
		echo "test: no Docker daemon answers: the end-to-end tests ran on processes only"; fi

.PHONY: fmt-check
fmt-check:
	cargo fmt --all --check

# cargo-deny where it is installed; it also wants a network for its advisories.
.PHONY: policy
policy: ## licences, sources and duplicates of the dependencies, by deny.toml
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check licenses bans sources; else \
		scripts/dependency-policy.py; fi

# Not part of `make test`: its result changes with the database, not with the code.
.PHONY: advisories
advisories: ## known faults of the dependencies, ours and SQ's, by cargo-audit (ADVISORY_DB=FOLDER)
	@scripts/advisories.sh

.PHONY: tidy
tidy: ## how sources and docs read: plain English, links, file names, the glossary
	@python3 scripts/tests/test_tidy.py --quiet
	@scripts/tidy.py

.PHONY: doc
doc: ## the API documentation of every crate, without warnings, in target/doc
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items $(TEST_FEATURES)

# Warnings are errors only with the Rust release that Cargo.toml names; a newer one may have lints
# that this code was not written for.
LINTED_WITH := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
DENY = $(if $(findstring rustc $(LINTED_WITH).,$(shell rustc --version)),-- -D warnings)

.PHONY: lint
lint: ## Clippy, with warnings as errors on the pinned Rust
	cargo clippy --workspace --all-targets $(TEST_FEATURES) $(DENY)
	@$(if $(DENY),,echo "lint: warnings are shown only: they are for Rust $(LINTED_WITH)")

.PHONY: envoy-validate
envoy-validate: ## envoy/*.yaml, by the pinned Envoy with the filter
	scripts/envoy-validate.sh

.PHONY: wasm-test
wasm-test: ## the tests of settings, protocol and gate as wasm, in node
	@scripts/setup.sh wasm wasm-test
	CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER=$(CURDIR)/.tools/wasm-bindgen/bin/wasm-bindgen-test-runner \
		cargo test --package settings --package protocol --package gate --target wasm32-unknown-unknown

# The end-to-end tests start the other crates' binaries, which `cargo test` alone would not build.
BIN_DIR := $(abspath $(TARGET_DIR))/debug

.PHONY: test-binaries
test-binaries: setup-run wasm wasm-test-panic
	cargo build --bins --tests --examples $(TEST_FEATURES)

.PHONY: test-process
test-process: test-binaries ## unit tests and end-to-end tests, tenants as processes
	RUNTIME=process BIN_DIR=$(BIN_DIR) cargo test $(TEST_FEATURES)

# Figures of a debug build mean nothing; this only checks that every benchmark runs.
.PHONY: test-bench
test-bench: test-binaries wasm-bench ## the benchmark in its shortest form, as a test of itself
	RUNTIME=process BIN_DIR=$(BIN_DIR) $(BIN_DIR)/integration bench --quick >/dev/null

.PHONY: integration-test
integration-test: test-binaries ## all that needs Docker: its runtime, the dev stack, end-to-end tests
	@$(DOCKER_ANSWERS) || { echo "integration-test: no Docker daemon answers" >&2; exit 1; }
	RUNTIME=docker cargo test $(TEST_FEATURES) --test real -- --ignored
	RUNTIME=docker BIN_DIR=$(BIN_DIR) cargo test $(TEST_FEATURES) --test dev_stack
	RUNTIME=docker ENVOY_HOST=container BIN_DIR=$(BIN_DIR) cargo test $(TEST_FEATURES) --test end_to_end

.PHONY: fuzz
fuzz: ## every fuzz target of fuzz/ for FUZZ_SECONDS
	scripts/fuzz.sh

# The parsers of the gate are also covered by property tests, so they run for a shorter time.
.PHONY: fuzz-briefly
fuzz-briefly: ## every fuzz target, two at a time: usage, lease, registry and xds for a minute each
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),60) scripts/fuzz.sh --jobs 2 usage lease registry xds
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),15) scripts/fuzz.sh --jobs 2 body coordinate delta_body export \
		head key query query_body

## ---- figures

.PHONY: bench
bench: setup-run wasm wasm-bench binaries ## cost of a request, of limits, of the ledger and of a start
	@$(INTEGRATION) bench
	@echo && cargo run --release --quiet --package gate --example limits_bench
	@echo && cargo run --release --quiet --package orchestrator --example ledger_bench
	@echo && if $(DOCKER_ANSWERS); then \
		cargo run --release --quiet --package orchestrator --example cold_start; else \
		echo "bench: no Docker daemon answers: starts in containers were not measured"; fi

.PHONY: reconcile
reconcile: setup-run wasm binaries ## compares clients, Envoy and ledger over 100,000 requests while parts are killed
	@exec $(INTEGRATION) reconcile

.PHONY: scale
scale: setup-run wasm binaries ## cost of ten thousand tenants on this host, part by part
	@exec $(INTEGRATION) scale

.PHONY: drill
drill: setup-run wasm wasm-test-panic binaries ## kills, full disks and floods against a running gateway; counts client errors
	@exec $(INTEGRATION) drill

.PHONY: table
table: test-binaries binaries ## each way to corrupt or kill SQ: what SQ alone does, what the gateway does
	@exec $(INTEGRATION) proof --only table

.PHONY: proof
proof: test-binaries binaries ## kills SQ during writes, with and without the gateway; counts losses; SEED=, PROOF_ARGS=
	@exec $(INTEGRATION) proof $(PROOF_ARGS)

.PHONY: syscalls
syscalls: test-binaries ## system calls of SQ in the end-to-end tests, against the seccomp profile (needs strace)
	@scripts/syscalls.sh
	@SQ_VERSION=0.5.0 scripts/syscalls.sh

.PHONY: user-test
user-test: test-binaries ## what users' programs do, in a real browser too (installs Debian's chromium)
	@scripts/user-test.sh

## ---- housekeeping

.PHONY: fmt
fmt: ## formats the sources
	cargo fmt --all

.PHONY: clean
clean: ## removes what was built and run; .tools/ stays, as it is slow to make
	cargo clean
	rm -rf run target
