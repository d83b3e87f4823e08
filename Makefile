.PHONY: help up status logs zk halt down reup local stack stack-down zookeeper test test-page test-up soak bench check

# Vagrant would ask its makers for news otherwise.
export VAGRANT_CHECKPOINT_DISABLE = 1

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

up: ## build, and run the whole tree in containers (Docker, Vagrant)
	@vagrant up

status: ## draw that tree, and list its containers
	@bash deploy/containers.sh status

logs: ## show what its nodes log, and go on until Ctrl-C
	@bash deploy/containers.sh logs

zk: ## draw that tree as ZooKeeper has it
	@bash deploy/containers.sh zk

halt: ## stop it, the root first; up starts the same tree again
	@bash deploy/containers.sh halt

down: ## remove it with its data, however it was left
	@bash deploy/containers.sh remove

reup: down up ## remove it and run it anew, with the code as it is now

local: ## build, and run the whole tree as processes of this machine (no Docker)
	@cargo build --release --locked
	@exec bash deploy/local.sh "$${CARGO_TARGET_DIR:-target}/release/tree-cache"

stack: ## build, and run the tree on the Docker Swarm of this machine, however many others it has
	@bash deploy/stack.sh up

stack-down: ## remove it from the Swarm; the root's entries stay in their volume
	@bash deploy/stack.sh down

zookeeper: ## a private ZooKeeper in the foreground, to try: ZOOKEEPER=127.0.0.1:2181 make local
	@tests/it/zookeeper/server.sh try

test: ## all tests, several at a time, for they mostly wait; installs Java and ZooKeeper if it may
	@tests/it/zookeeper/server.sh install
	RUST_TEST_THREADS=6 cargo test --locked
	RUST_TEST_THREADS=4 cargo test --locked --test it zookeeper:: -- --ignored

test-page: ## test with a real browser, HTTP cache and proxies, and openapi.json against real nodes
	@bash tests/page.sh

soak: ## clients on all nodes while nodes are killed and paused, for SOAK_SECONDS (60)
	MALLOC_ARENA_MAX=1 ROUNDS=10 SOAK_SECONDS=$(or $(SOAK_SECONDS),60) cargo test --locked --release --test it \
	  -- --nocapture coherence:: leases::a_dead_leaf

bench: ## throughput beside the bare server, and what size costs (needs wrk)
	cargo bench --locked --bench bench

test-up: ## test up, stack and the like on real containers, and what a container's death does
	@bash tests/up.sh
	@bash tests/stack.sh

check: ## what CI runs first: format, lints, documentation, tests
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	$(MAKE) test
