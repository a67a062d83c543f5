# Each target does its own set-up, on a fresh machine too. CONTRIBUTING.md says more.
.PHONY: help demo test clients bench-relay bench-calls bench-projection endure-relay migrate-from-debezium up down lint fmt setup deb tools
.DEFAULT_GOAL := help

# One set for all who run the system: with another, cargo would build its dependencies once more.
PROGRAMS := -p user-service -p order-service -p outbox-relay -p devstack -p demo
BUILT := $(or $(CARGO_TARGET_DIR),target)

help: ## Show this
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: setup ## Run the main job, narrated; it then stays up. ONCE=1 ends by itself, with 0 if every step held
	cargo build --locked $(PROGRAMS)
	$(BUILT)/debug/demo $(if $(ONCE),--once)

test: setup ## Run every test, on a real Postgres and a real Kafka
	cargo build --locked --workspace --all-targets
	$(BUILT)/debug/devstack run -- cargo test --locked --workspace

clients: setup ## Call it from other languages, and show what holds. CLIENTS="grpcurl python go node java" ALLOW_MISSING=1
	cargo build --locked $(PROGRAMS)
	clients/run $(BUILT)/debug/devstack
	$(BUILT)/debug/devstack run -- cargo test --locked -p outbox-relay --test writers -- --nocapture

bench-relay: setup ## Measure the relay. ROWS=1000000 RUNS=5 RATES=1000,5000 SINKS=rdkafka DEBEZIUM=1 CURVES=1 or full, JSON=FILE, MARKDOWN=FILE
	cargo build --locked --release -p outbox-relay -p bench
	$(BUILT)/release/bench relay $(if $(ROWS),--rows $(ROWS)) $(if $(RUNS),--runs $(RUNS)) $(if $(RATES),--rates $(RATES)) \
	  $(if $(SINKS),--sinks $(SINKS)) $(if $(DEBEZIUM),--debezium) $(if $(CURVES),--curves=$(if $(filter full,$(CURVES)),full,short)) \
	  $(if $(JSON),--json $(JSON)) $(if $(MARKDOWN),--markdown $(MARKDOWN))

bench-calls: setup ## Measure the services: calls a second beside pgbench, ways of validation, overload. ONLY=throughput RUNS=5 SECONDS=10 RATE=100 JSON=FILE
	cargo build --locked --release $(PROGRAMS) -p bench
	$(BUILT)/release/bench calls $(if $(ONLY),--only $(ONLY)) $(if $(RUNS),--runs $(RUNS)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(RATE),--rate $(RATE)) $(if $(JSON),--json $(JSON))

bench-projection: setup ## Measure a projection. RECORDS=1000000 RUNS=3 RATE=1000 SECONDS=10 JSON=FILE
	cargo build --locked --release $(PROGRAMS) -p bench
	$(BUILT)/release/bench projection $(if $(RECORDS),--records $(RECORDS)) $(if $(RUNS),--runs $(RUNS)) $(if $(RATE),--rate $(RATE)) \
	  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(JSON),--json $(JSON))

endure-relay: setup ## Load the relay for long. SECONDS=3600 RATE=2000 KILLS=100 STANDBY=1 HOLD=1 (an open transaction) SINK=rdkafka JSON=FILE
	cargo build --locked --release -p outbox-relay -p acceptance
	$(BUILT)/release/acceptance endurance $(if $(SECONDS),--seconds $(SECONDS)) $(if $(RATE),--rate $(RATE)) \
	  $(if $(KILLS),--kills $(KILLS)) $(if $(STANDBY),--standby) $(if $(HOLD),--hold-transaction) $(if $(SINK),--sink $(SINK)) $(if $(JSON),--json $(JSON))

migrate-from-debezium: setup ## From Debezium to the relay, under load. ROWS=100000 RATE=1000 LONG_MS=3000 BACK=1 MISTAKE=stop-early JSON=FILE
	cargo build --locked --release -p outbox-relay -p acceptance
	$(BUILT)/release/acceptance migrate $(if $(ROWS),--rows $(ROWS)) $(if $(RATE),--rate $(RATE)) $(if $(LONG_MS),--long-ms $(LONG_MS)) \
	  $(if $(BACK),--back) $(if $(MISTAKE),--mistake $(MISTAKE)) $(if $(JSON),--json $(JSON))

up: setup ## Start the whole system in the background; its addresses are in .devstack/endpoints.env
	cargo build --locked $(PROGRAMS)
	$(BUILT)/debug/devstack up

down: ## End what `make up` started
	cargo build --locked --quiet $(PROGRAMS)
	$(BUILT)/debug/devstack down

lint: setup ## Check format, lints, docs, dependencies and contracts
	scripts/lint

fmt: ## Format the code and the contracts
	cargo fmt --all
	! command -v buf || buf format -w

deb: ## Make a Debian package of the relay, and one with its debug symbols; prints where they are
	scripts/setup --only-deb
	$(MAKE) .tools/bin/cargo-deb
	PATH="$(CURDIR)/.tools/bin:$$PATH" cargo deb --package outbox-relay --locked --dbgsym

setup:
	@scripts/setup

tools: .tools/bin/buf .tools/bin/grpcurl ## Install what `make lint` can also use: buf, cargo-deny, cargo-machete, @asyncapi/parser, kubernetes-validate; and grpcurl
	! command -v npm || scripts/asyncapi/build
	! python3 -c 'import ensurepip' || $(MAKE) .tools/bin/kubernetes-validate
	cargo install --locked --quiet --root .tools cargo-deny@0.20.2 cargo-machete@0.9.2

.tools/bin/buf:
	GOBIN=$(CURDIR)/.tools/bin go install github.com/bufbuild/buf/cmd/buf@v1.57.2

.tools/bin/grpcurl:
	GOBIN=$(CURDIR)/.tools/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3

.tools/bin/cargo-deb:
	cargo install --locked --quiet --root .tools cargo-deb@3.8.0

# The schemas of Kubernetes come with it.
.tools/bin/kubernetes-validate:
	python3 -m venv .tools/kubernetes-validate
	.tools/kubernetes-validate/bin/pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
	mkdir -p .tools/bin && ln -sf ../kubernetes-validate/bin/kubernetes-validate .tools/bin/
