#!/bin/sh
# Fuzzes each target of fuzz/ for FUZZ_SECONDS (default 600), one after another: `fuzz.sh`, or `fuzz.sh pool files` for some.
# What was found so far grows in $XDG_CACHE_HOME/mooring/fuzz/<target> and is where the next run begins. An input that breaks a
# check is printed with its path: mend the code and keep the input in oracles/seeds/<target>, where `make test` runs it for ever.
set -eu
cd "$(dirname "$0")/.."

fail() { echo "fuzz: $*" >&2; exit 1; }

scripts/deps.sh fuzz
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mooring
tool=$cache/cargo-fuzz-0.13.2
if [ ! -x "$tool/bin/cargo-fuzz" ]; then
    echo "fuzz: building cargo-fuzz into $tool"
    cargo install --quiet --locked --version 0.13.2 --root "$tool" --target-dir "$tool/target" cargo-fuzz || fail "cargo install cargo-fuzz failed"
    rm -rf "$tool/target"
fi
PATH=$tool/bin:$PATH

# The versions that the product is built with, and libfuzzer-sys.
cp Cargo.lock fuzz/Cargo.lock
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
export CARGO_TARGET_DIR
# No sanitizer: the product has no unsafe code, and without one any toolchain will do. What is looked for are panics, broken
# rules and overflows (both kinds of assertions are on), 2 GiB of memory and 10 s for one input.
cargo fuzz build -s none || fail "the targets do not build"

# Inputs that are files are written anew each time.
[ ! -d /dev/shm ] || TMPDIR=/dev/shm
export TMPDIR="${TMPDIR:-/tmp}"
[ $# -gt 0 ] || set -- $(cargo fuzz list)
failed=
for target in "$@"; do
    corpus=$cache/fuzz/$target
    found=$cache/fuzz/found/$target
    mkdir -p "$corpus" "$found"
    log=$(mktemp)
    echo "fuzz: $target for ${FUZZ_SECONDS:-600} s"
    if cargo fuzz run -s none "$target" "$corpus" "oracles/seeds/$target" -- "-max_total_time=${FUZZ_SECONDS:-600}" \
        -max_len=4096 -timeout=10 -dict=fuzz/words.dict "-artifact_prefix=$found/" -print_final_stats=1 >"$log" 2>&1; then
        sed -n 's/^stat::number_of_executed_units: */fuzz: executions: /p; /^#.*DONE/s/^/fuzz: /p' "$log"
    else
        # The panic, the input and its file, without the progress and the frames of the stack.
        grep -av '^#[0-9]\|^ *[0-9]*: \|^ *at \|^INFO' "$log" | tail -n 30 >&2
        failed="$failed $target"
    fi
    rm -f "$log"
done
[ -z "$failed" ] || fail "failed:$failed"
