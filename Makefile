# make demo                the product on two simulated nodes (ARGS=--keep leaves them running)
# make test                all lanes of proof; LANE=unit, LANE=lab or LANE=kube for one; LANE=older-kernel: the lab on Linux 6.1
# make simulate            a million seeded schedules of the address allocator (make test: 100,000)
# make kill-rounds         everything killed, torn, full and gone, all rounds of it (half an hour); the lab lane has some
# make bench               the product against the reference plugins: one table, below ten minutes; ARGS=--kube adds the rows
#                          on kube-apiserver and etcd
# make fuzz                every parser against any bytes, 10 minutes each (FUZZ_SECONDS=60, ARGS=pool for one of them)
# make build               all binaries as a release: target/release, and the static CNI ones in target/cni
# make clean-lab           removes what a killed or kept demo or test left behind

LANE ?=
ARGS ?=
TARGET = $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)

.PHONY: build cni test kill-rounds simulate fuzz demo bench clean-lab

build: cni
	cargo build --release --locked -p standalone -p controller -p bridge-agent -p cli --bins

cni:
	@scripts/deps.sh build
	# Static, so that they run on any host, and small: the runtime starts one for every call. Packed relocations (RELR) are 80 KB less.
	target=$$(scripts/cni-target.sh) && export RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs" && \
	cargo build --profile cni --locked --target $$target -p cni-macvlan -p cni-ovs -p cni-meta --bins && \
	mkdir -p $(TARGET)/cni && cp -f $(TARGET)/$$target/cni/cni-macvlan $(TARGET)/$$target/cni/cni-ovs $(TARGET)/$$target/cni/cni-meta $(TARGET)/cni/

test:
	@scripts/test.sh $(or $(LANE),all)

simulate:
	MOORING_SCHEDULES=1000000 cargo test --profile lab --locked -p ipam --test simulation every_schedule -- --nocapture

kill-rounds:
	@scripts/test.sh kill-rounds

fuzz:
	@scripts/fuzz.sh $(ARGS)

demo:
	@scripts/deps.sh lab
	cargo build --profile lab --locked --workspace --bins
	@$(TARGET)/lab/mooring-lab demo $(ARGS)

bench: cni
	@scripts/deps.sh lab
	cargo build --release --locked -p standalone -p controller -p bridge-agent -p integration-tests --bins
ifneq (,$(findstring --kube,$(ARGS)))
	@scripts/deps.sh kube
	@MOORING_TOOLS=$$(scripts/kube-tools.sh) && export MOORING_TOOLS && $(TARGET)/release/mooring-lab bench --cni $(TARGET)/cni $(ARGS)
else
	@$(TARGET)/release/mooring-lab bench --cni $(TARGET)/cni $(ARGS)
endif

clean-lab:
	@$(TARGET)/lab/mooring-lab clean
