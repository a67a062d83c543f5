# Each target installs what it needs, also on a new machine. See docs/CONTRIBUTING.md.
.PHONY: help demo test clients bench-relay bench-calls bench-projection endure-relay migrate-from-debezium up down lint fmt setup setup-tests deb tools
.DEFAULT_GOAL := help

# One package set for all targets that run the system: with another set, cargo rebuilds dependencies.
PROGRAMS := -p user-service -p order-service -p outbox-relay -p devstack -p demo
BUILT := $(or $(CARGO_TARGET_DIR),target)

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 30

demo: setup ## Run the demo and keep the system running. ONCE=1 stops it afterwards and exits with 0 if every step passed
	cargo build --locked $(PROGRAMS)
	$(BUILT)/debug/demo $(if $(ONCE),--once)

test: setup-tests ## Run all tests on a real Postgres and a real Kafka
	cargo build --locked --workspace --all-targets
	$(BUILT)/debug/devstack run -- scripts/test

clients: setup ## Run the example clients. CLIENTS="grpcurl python go node java" selects some, ALLOW_MISSING=1 skips those without tools
	cargo build --locked $(PROGRAMS)
	clients/run $(BUILT)/debug/devstack
	$(BUILT)/debug/devstack run -- cargo test --locked -p outbox-relay --test writers -- --nocapture

bench-relay: setup ## Benchmark the relay. ROWS=1000000 (backlog) RUNS=5 RATES=1000,5000 (commits/s) SINKS=rdkafka DEBEZIUM=1 (compare) CURVES=1|full JSON=FILE MARKDOWN=FILE
	cargo build --locked --release -p outbox-relay -p bench
	$(BUILT)/release/bench relay $(if $(ROWS),--rows $(ROWS)) $(if $(RUNS),--runs $(RUNS)) $(if $(RATES),--rates $(RATES)) \
	  $(if $(SINKS),--sinks $(SINKS)) $(if $(DEBEZIUM),--debezium) $(if $(CURVES),--curves=$(if $(filter full,$(CURVES)),full,short)) \
	  $(if $(JSON),--json $(JSON)) $(if $(MARKDOWN),--markdown $(MARKDOWN))

bench-calls: setup ## Benchmark gRPC calls. ONLY=throughput|validation|overload RUNS=5 SECONDS=10 (each) RATE=100 (orders/s in validation) JSON=FILE
	cargo build --locked --release $(PROGRAMS) -p bench
	$(BUILT)/release/bench calls $(if $(ONLY),--only $(ONLY)) $(if $(RUNS),--runs $(RUNS)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(RATE),--rate $(RATE)) $(if $(JSON),--json $(JSON))

bench-projection: setup ## Benchmark a projection. RECORDS=1000000 (in the topic) RUNS=3 RATE=1000 (users/s) SECONDS=10 (for lag) JSON=FILE
	cargo build --locked --release $(PROGRAMS) -p bench
	$(BUILT)/release/bench projection $(if $(RECORDS),--records $(RECORDS)) $(if $(RUNS),--runs $(RUNS)) $(if $(RATE),--rate $(RATE)) \
	  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(JSON),--json $(JSON))

endure-relay: setup ## Run the relay under load and audit all events. SECONDS=3600 RATE=2000 (commits/s) KILLS=100 STANDBY=1 HOLD=1 (an open transaction) SINK=rdkafka JSON=FILE
	cargo build --locked --release -p outbox-relay -p acceptance
	$(BUILT)/release/acceptance endurance $(if $(SECONDS),--seconds $(SECONDS)) $(if $(RATE),--rate $(RATE)) \
	  $(if $(KILLS),--kills $(KILLS)) $(if $(STANDBY),--standby) $(if $(HOLD),--hold-transaction) $(if $(SINK),--sink $(SINK)) $(if $(JSON),--json $(JSON))

migrate-from-debezium: setup ## Test the migration from Debezium under load. ROWS=100000 RATE=1000 (rows/s) LONG_MS=3000 (blocking transactions) BACK=1 (and back) MISTAKE=stop-early JSON=FILE
	cargo build --locked --release -p outbox-relay -p acceptance
	$(BUILT)/release/acceptance migrate $(if $(ROWS),--rows $(ROWS)) $(if $(RATE),--rate $(RATE)) $(if $(LONG_MS),--long-ms $(LONG_MS)) \
	  $(if $(BACK),--back) $(if $(MISTAKE),--mistake $(MISTAKE)) $(if $(JSON),--json $(JSON))

up: setup ## Start the system in the background; addresses are in .devstack/endpoints.env
	cargo build --locked $(PROGRAMS)
	$(BUILT)/debug/devstack up

down: ## Stop the system that `make up` started
	cargo build --locked --quiet $(PROGRAMS)
	$(BUILT)/debug/devstack down

lint: setup ## Check formatting, lints, docs, dependencies and API contracts
	scripts/lint

fmt: ## Format the Rust code and the .proto files
	cargo fmt --all
	! command -v buf || buf format -w

deb: ## Build the Debian packages of the relay and its debug symbols, and print their paths
	scripts/setup --only-deb
	$(MAKE) .tools/bin/cargo-deb
	PATH="$(CURDIR)/.tools/bin:$$PATH" cargo deb --package outbox-relay --locked --dbgsym

setup:
	@scripts/setup

setup-tests:
	@scripts/setup --tests

tools: .tools/bin/buf .tools/bin/grpcurl ## Install grpcurl and the optional tools of `make lint`: buf, cargo-deny, cargo-machete, @asyncapi/parser, kubernetes-validate
	! command -v npm || scripts/asyncapi/build
	! python3 -c 'import ensurepip' || $(MAKE) .tools/bin/kubernetes-validate
	cargo install --locked --quiet --root .tools cargo-deny@0.20.2 cargo-machete@0.9.2

.tools/bin/buf:
	GOBIN=$(CURDIR)/.tools/bin go install github.com/bufbuild/buf/cmd/buf@v1.57.2

.tools/bin/grpcurl:
	GOBIN=$(CURDIR)/.tools/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3

.tools/bin/cargo-deb:
	cargo install --locked --quiet --root .tools cargo-deb@3.8.0

# The package includes the Kubernetes schemas.
.tools/bin/kubernetes-validate:
	python3 -m venv .tools/kubernetes-validate
	.tools/kubernetes-validate/bin/pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
	mkdir -p .tools/bin && ln -sf ../kubernetes-validate/bin/kubernetes-validate .tools/bin/
