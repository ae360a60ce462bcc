#!/bin/sh
# Prints the target that the static CNI binaries are built for: with musl's C library, or where rustup is not there or cannot
# fetch its target, the host's own with a static glibc. That runs as well, but is larger by half and takes twice as long to start:
# before main it asks the processor about itself with cpuid, which a virtual machine answers by a trap each time.
set -eu
host=$(rustc -vV | sed -n "s/^host: //p")
case "$host" in
    *-linux-gnu) musl=${host%-gnu}-musl ;;
    *) echo "$host"; exit 0 ;;
esac
there() { [ -d "$(rustc --print target-libdir --target "$musl" 2>/dev/null)" ]; }
there || rustup target add "$musl" >&2 || true
if there; then
    echo "$musl"
else
    echo "cni-target: no target $musl to be had, taking $host" >&2
    echo "$host"
fi
