# Each target does its own set-up, on a fresh machine too. CONTRIBUTING.md says more.
.PHONY: help demo test up down lint fmt setup tools
.DEFAULT_GOAL := help

PROGRAMS := -p user-service -p order-service -p outbox-relay

help: ## Show this
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: setup ## Run the main job, narrated; it then stays up. ONCE=1 ends by itself, with 0 if every step held
	cargo build --locked $(PROGRAMS) -p demo
	cargo run --locked --quiet -p demo -- $(if $(ONCE),--once)

test: setup ## Run every test, on a real Postgres and a real Kafka
	cargo build --locked --workspace --all-targets
	cargo run --locked --quiet -p devstack -- run -- cargo test --locked --workspace

up: setup ## Start the whole system in the background; its addresses are in .devstack/endpoints.env
	cargo build --locked $(PROGRAMS) -p devstack
	cargo run --locked --quiet -p devstack -- up

down: ## End what `make up` started
	cargo run --locked --quiet -p devstack -- down

lint: setup ## Check format, lints, docs, dependencies and contracts
	scripts/lint

fmt: ## Format the code and the contracts
	cargo fmt --all
	! command -v buf || buf format -w

setup:
	@scripts/setup

tools: .tools/bin/buf .tools/bin/grpcurl ## Install what `make lint` can also use: buf, cargo-deny, cargo-machete; and grpcurl
	cargo install --locked --quiet --root .tools cargo-deny@0.20.2 cargo-machete@0.9.2

.tools/bin/buf:
	GOBIN=$(CURDIR)/.tools/bin go install github.com/bufbuild/buf/cmd/buf@v1.57.2

.tools/bin/grpcurl:
	GOBIN=$(CURDIR)/.tools/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
