# make demo                the product on two simulated nodes (ARGS=--keep leaves them running)
# make test                all lanes of proof; LANE=unit or LANE=lab for one
# make bench               the product against the reference plugins: one table, below ten minutes
# make build               all binaries, as a release
# make clean-lab           removes what a killed or kept demo or test left behind

LANE ?=
ARGS ?=
TARGET = $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)

.PHONY: build test demo bench clean-lab

build:
	@scripts/deps.sh build
	cargo build --release --locked --workspace --bins

test:
	@scripts/test.sh $(or $(LANE),both)

demo:
	@scripts/deps.sh lab
	cargo build --profile lab --locked --workspace --bins
	@$(TARGET)/lab/mooring-lab demo $(ARGS)

bench:
	@scripts/deps.sh lab
	cargo build --release --locked --workspace --bins
	@$(TARGET)/release/mooring-lab bench $(ARGS)

clean-lab:
	@$(TARGET)/lab/mooring-lab clean
