#!/bin/sh
# Runs the lanes of proof: `test.sh unit`, `test.sh lab`, `test.sh kube` or `test.sh all`; and `test.sh kill-rounds`, all of what
# the lab lane has a part of, and `test.sh older-kernel`, nearly all of the lab lane on
# Debian 12's Linux 6.1 with its Open vSwitch. A lane that cannot run fails with the reason.
set -eu
cd "$(dirname "$0")/.."

# One profile for everything, so that 300 crates are compiled once.
flags="--profile lab --locked"

# Test targets whose name begins with lab_ need root, namespaces and Open vSwitch, those with kube_ also a real API server; all
# others need nothing.
targets() {
    for file in */tests/*.rs */tests/*/main.rs; do
        [ -e "$file" ] || continue
        name=$(basename "$file" .rs)
        [ "$name" != main ] || name=$(basename "$(dirname "$file")")
        case "$1:$name" in
            lab:lab_*) echo "$name" ;;
            kube:kube_*) echo "$name" ;;
            unit:lab_* | unit:kube_*) ;;
            unit:*) echo "$name" ;;
        esac
    done | sort -u | sed 's/^/--test /'
}

unit() {
    scripts/deps.sh build
    cargo fmt --all --check
    # Tests may unwrap, also in the functions beside them.
    # shellcheck disable=SC2086
    cargo clippy --workspace --lib --bins $flags -- -D warnings
    # shellcheck disable=SC2086
    cargo clippy --workspace --all-targets $flags -- -D warnings -A clippy::unwrap_used
    # shellcheck disable=SC2046,SC2086
    cargo test --no-fail-fast --workspace $flags --lib --bins $(targets unit)
}

# The lab runs the processes as users run them, so all binaries must be there before the first test. An agent that can be made
# to stop at any step of its work comes first and under another name: what is left in its place is what is shipped.
bins() {
    built="${CARGO_TARGET_DIR:-target}/lab"
    # shellcheck disable=SC2086
    cargo build --workspace --bins --features bridge-agent/stop-at-step $flags
    cp -f "$built/mooring-agent" "$built/mooring-agent-stopping"
    # shellcheck disable=SC2086
    cargo build --workspace --bins $flags
}

kill_rounds() {
    [ "$(id -u)" = 0 ] || { echo "kill-rounds: not root, and network namespaces need root" >&2; exit 1; }
    scripts/deps.sh lab
    bins
    # shellcheck disable=SC2086
    MOORING_KILL_ROUNDS=full cargo test --no-fail-fast --workspace $flags --test lab_kill --test lab_burst -- --test-threads=1 --nocapture
}

lab() {
    [ "$(id -u)" = 0 ] || { echo "lab: not root, and network namespaces need root" >&2; exit 1; }
    scripts/deps.sh lab
    bins
    # One test at a time: they are full machines with their own daemons, and a timeout must mean something.
    # shellcheck disable=SC2046,SC2086
    cargo test --no-fail-fast --workspace $flags $(targets lab) -- --test-threads=1
    # Nothing may be left behind by any of them.
    "${CARGO_TARGET_DIR:-target}/lab/mooring-lab" leftovers
}

older_kernel() {
    [ "$(id -u)" = 0 ] || { echo "older-kernel: not root, and network namespaces need root" >&2; exit 1; }
    scripts/deps.sh lab
    bins
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    # Each program of tests is one machine that boots, runs it and goes. That which boots one itself stays out; podman's, whose
    # bridge wants a nat table, for this kernel has none; bursts and kill rounds, for it has one processor, and a slow one.
    export "CARGO_TARGET_${host}_RUNNER=$(realpath "$built/mooring-lab") on-older-kernel"
    # shellcheck disable=SC2046,SC2086
    cargo test --no-fail-fast --workspace $flags $(targets lab | grep -v -e lab_older_kernel -e lab_podman -e lab_burst -e lab_kill) -- --test-threads=1
    "$built/mooring-lab" leftovers
}

kube() {
    [ "$(id -u)" = 0 ] || { echo "kube: not root, and network namespaces need root" >&2; exit 1; }
    scripts/deps.sh kube
    MOORING_TOOLS=$(scripts/kube-tools.sh)
    export MOORING_TOOLS
    # shellcheck disable=SC2086
    cargo build --workspace --bins $flags
    # The API suite is a program of the crate standalone; cargo says where it puts it.
    # shellcheck disable=SC2086
    MOORING_API_SUITE=$(cargo test --workspace $flags --test api_suite --no-run 2>&1 | sed -n 's/.*Executable.*api_suite.*(\(.*\))$/\1/p')
    [ -n "$MOORING_API_SUITE" ] || { echo "kube: the API suite does not build: cargo test -p standalone --test api_suite" >&2; exit 1; }
    MOORING_API_SUITE=$(realpath "$MOORING_API_SUITE")
    export MOORING_API_SUITE
    # shellcheck disable=SC2046,SC2086
    cargo test --no-fail-fast --workspace $flags $(targets kube) -- --test-threads=1
    "${CARGO_TARGET_DIR:-target}/lab/mooring-lab" leftovers
}

case "${1:-all}" in
    unit) unit ;;
    lab) lab ;;
    kube) kube ;;
    kill-rounds) kill_rounds ;;
    older-kernel) older_kernel ;;
    all) unit; lab; kube ;;
    *) echo "unknown LANE '$1': one of unit, lab, kube, kill-rounds, older-kernel, all" >&2; exit 2 ;;
esac
