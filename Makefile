# pgwarden. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# The cluster that demo and tests use; `make demo KUBECONFIG=…` takes your own instead.
export PGWARDEN_CLUSTER ?= main

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: ## a three-node replicated PostgreSQL from one manifest, on a cluster of its own (or yours: KUBECONFIG=…)
	@deploy/demo up

demo-down: ## removes what `make demo` made
	@deploy/demo down

setup: ## installs what building and testing need
	@tests/setup

images: setup ## static binaries and OCI archives in target/images
	@images/build

test: test-fast test-ctl test-cluster ## every test

test-fast: setup ## the inner loop: unit, property, agents against real PostgreSQL processes; no Kubernetes
	@tests/fast

test-cluster: setup ## the tests on a real Kubernetes
	@tests/e2e/run

test-ctl: setup ## the test cluster's own commands
	@tests/cluster/test.sh

bench: setup ## measures, to target/bench (BENCH=name for one)
	@tests/bench/run $(BENCH)

lint: ## formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

manifests: ## writes deploy/crds and deploy/operator*.yaml from the code
	UPDATE=1 cargo test --quiet --locked -p pgwarden-api -p pgwarden-controller deploy_is_current

.PHONY: help demo demo-down setup images test test-fast test-ctl test-cluster bench lint manifests
