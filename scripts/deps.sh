#!/bin/sh
# Installs what building, the lab and the demo need on Debian 12: `deps.sh build` or `deps.sh lab`.
# No system service is started by it. With everything in place it does nothing and needs no root.
set -eu

fail() { echo "deps: $*" >&2; exit 1; }

case "${1:-lab}" in
    # ring, under rustls, compiles C.
    build) packages="gcc libc6-dev" ;;
    # libFuzzer's runtime is C++.
    fuzz) packages="gcc g++ libc6-dev" ;;
    # Open vSwitch is what bridges are made of; the reference plugins are the pods' cluster network and a judge of ours;
    # podman 4, with runc, is a second runtime on the same host, its containers a static busybox; the rest reads state back: no
    # check trusts our own code for that.
    lab) packages="gcc libc6-dev openvswitch-switch containernetworking-plugins podman runc busybox-static iproute2 iputils-ping ethtool tcpdump util-linux"
        # An older kernel, as a process; Debian has it for this architecture.
        [ "$(uname -m)" != x86_64 ] || packages="$packages user-mode-linux kmod" ;;
    # The API server's store, beside the lab; without Go, kube-tools.sh fetches one into a venv.
    kube)
        "$0" lab
        packages="gcc libc6-dev etcd-server openssl util-linux"
        command -v go >/dev/null 2>&1 || packages="$packages python3-venv" ;;
    *) fail "unknown set '$1': one of build, fuzz, lab, kube" ;;
esac

command -v cargo >/dev/null 2>&1 || fail "no cargo in PATH: install a Rust toolchain, 1.95 or newer (rustup is the usual way)"
command -v rustc >/dev/null 2>&1 || fail "no rustc in PATH: install a Rust toolchain, 1.95 or newer (rustup is the usual way)"
version=$(rustc --version | awk '{print $2}')
oldest=$(printf '%s\n1.95.0\n' "${version%%-*}" | sort -V | head -n 1)
[ "$oldest" = 1.95.0 ] || fail "rustc $version is too old: 1.95 or newer is needed"

command -v dpkg-query >/dev/null 2>&1 || fail "this is not Debian: install what provides these packages by hand: $packages"
missing=
for package in $packages; do
    state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || fail "not root, and these packages are missing:$missing"

# While packages are configured, policy-rc.d answers 101, "starting is forbidden"; an administrator's own one comes back
# afterwards, also after a run that was killed in the middle.
policy=/usr/sbin/policy-rc.d
theirs=$policy.before-mooring
ours='# mooring: no service starts while its packages are installed'
restore() {
    if [ -e "$theirs" ]; then mv -f "$theirs" "$policy"; elif grep -qsF "$ours" "$policy"; then rm -f "$policy"; fi
}
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
restore
[ ! -e "$policy" ] || mv "$policy" "$theirs"
printf '#!/bin/sh\n%s\nexit 101\n' "$ours" > "$policy"
chmod 755 "$policy"

echo "deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
apt() { apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; fail "apt-get $1 failed"; }; }
apt update

# bookworm's etcd is 3.4, which Kubernetes tests no more and which cannot serve watch-lists. trixie's 3.5 needs nothing but
# the C library, so its package alone is taken, from the mirror that this host uses and without a change to apt's sources.
newer_etcd() {
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' | sed -n 's/ bookworm$//p' | head -n 1)
    [ -n "$mirror" ] || return 1
    newer=$(mktemp -d)
    mkdir -p "$newer/lists/partial"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] $mirror trixie main" > "$newer/trixie.list"
    # Its own lists and caches: the host's stay as they are.
    set -- -o "Dir::Etc::SourceList=$newer/trixie.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$newer/lists" \
        -o "Dir::Cache::pkgcache=$newer/p" -o "Dir::Cache::srcpkgcache=$newer/s" -o APT::Sandbox::User=root
    (cd "$newer" && apt-get -qq "$@" update && apt-get -qq "$@" download etcd-server) >"$log" 2>&1 \
        && apt install -y --no-install-recommends "$newer"/etcd-server_*.deb
}
case "$missing" in
    *etcd-server*)
        if newer_etcd; then missing=$(echo "$missing" | sed 's/ etcd-server//'); else echo "deps: no etcd of trixie to be had, taking bookworm's"; fi
        [ -z "${newer:-}" ] || rm -rf "$newer" ;;
esac
[ -n "$missing" ] || { rm -f "$log"; exit 0; }
# shellcheck disable=SC2086
apt install -y --no-install-recommends $missing
rm -f "$log"
