.PHONY: help local test check

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

local: ## build, and run the whole tree as processes of this machine (no Docker)
	@cargo build --release --locked
	@bash src/local.sh target/release/tree-cache

test: ## all tests
	cargo test --locked

check: ## what CI runs: format, lints, documentation, tests
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	$(MAKE) test
