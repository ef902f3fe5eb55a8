# Entry points. What a step does is defined in crates/xtask and scripts/setup.

# The toolchain: rust-toolchain.toml's if it is there, else any that is new enough.
CARGO := scripts/with-toolchain cargo
BINARY := $(or $(CARGO_TARGET_DIR),target)/release/portcullis
# Programs are loaded and namespaces made by root only.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.DEFAULT_GOAL := help
.PHONY: help setup build demo test bench lint clean

help: ## show this text
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo 'make demo DOCKER=1 runs the demo on real Docker containers; ARGS="..." goes to demo and bench.'

setup: ## install what is missing on this machine
	scripts/setup

build: ## the release binary, with the BPF object inside
	$(CARGO) xtask build

demo: ## set up, build, and run the whole story in namespaces of its own (root)
	scripts/setup $(if $(DOCKER),--docker)
	$(CARGO) xtask build
	$(AS_ROOT) $(BINARY) demo $(if $(DOCKER),--docker) $(ARGS)

test: ## everything CI runs: lints, unit tests, the privileged suites (root)
	scripts/setup --tests
	$(CARGO) xtask test

bench: ## the benchmarks, into target/bench/ (root)
	scripts/setup --tests
	$(CARGO) xtask bench $(ARGS)

lint: ## formatting, clippy, cargo-deny where installed
	$(CARGO) xtask lint

clean: ## remove everything that was built
	$(CARGO) clean
