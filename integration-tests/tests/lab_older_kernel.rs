//! Linux 6.1, which Debian 12 has: what this machine's own kernel does otherwise is met here and not by a user first.
// Debian has user-mode Linux for this architecture alone.
#![cfg(target_arch = "x86_64")]

use std::path::Path;
use std::time::Duration;

use integration_tests::guest;
use serde_json::Value;

/// `script` finds the programs in `$BIN` and the repository in `$SRC`.
fn on_older_kernel(script: &str) -> String {
    let exe = Path::new(env!("CARGO_BIN_EXE_mooring-lab"));
    let (bin, src) = (exe.parent().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    let script = format!("uname -sr; BIN='{}'; SRC='{}'\n{script}", bin.display(), src.display());
    let ended = guest::run(exe, &[bin, src], &script, Duration::from_secs(600)).unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(ended.status, 0, "{}", ended.said);
    assert!(ended.said.contains("Linux 6.1."), "another kernel: {}", ended.said);
    ended.said
}

/// The lines `<name> <JSON>` that the script printed.
fn said<'a>(all: &'a str, name: &str) -> Vec<(&'a str, Value)> {
    let lines = all.lines().filter_map(|line| line.strip_prefix(name)?.trim_start().split_once(' '));
    lines.map(|(of, json)| (of, serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}")))).collect()
}

fn names(links: &Value) -> Vec<&str> {
    links.as_array().unwrap().iter().map(|l| l["ifname"].as_str().unwrap()).collect()
}

/// Before Linux 6.15 a macvlan whose parent is in another namespace is registered there first, under its name. The NIC of a
/// cloud's machine is `eth0`, and so is that of every pod.
#[test]
fn a_pods_eth0_on_the_hosts_eth0() {
    let out = on_older_kernel(
        r#"
ip link add eth0 type dummy; ip link set eth0 up
net() { echo "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"type\":\"cni-macvlan\",\"master\":\"eth0\",\"ipam\":{\"type\":\"static\",\"addresses\":[{\"address\":\"10.9.0.$1/24\"}]}}"; }
cni() { net $2 | CNI_COMMAND=$1 CNI_CONTAINERID=c$2 CNI_NETNS=/run/netns/p$2 CNI_IFNAME=eth0 CNI_PATH="$BIN:/usr/lib/cni" "$BIN/cni-macvlan"; }
links() { echo "links $1 $(ip -j -d -n p$1 link)"; }
pods="10 11 12 13 14 15 16 17 18 19"
for p in $pods; do ip netns add p$p; done
for p in $pods; do cni ADD $p > /run/said-$p & done
wait
for p in $pods; do echo "result $p $(cat /run/said-$p)"; done
for p in $pods; do links $p; done
ip netns exec p10 ping -c 1 -W 5 10.9.0.11 > /run/ping && echo pinged
# What is really there is still in the way, and nothing is left of the attempt.
ip netns add p20; ip -n p20 link add eth0 type dummy
echo "result 20 $(cni ADD 20)" || true
links 20
echo "links host $(ip -j -d link)"
for p in $pods 20; do cni DEL $p; done
for p in $pods 20; do links $p; done
"#,
    );
    let results = said(&out, "result");
    assert_eq!(results.len(), 11, "{out}");
    for (pod, result) in &results[..10] {
        assert_eq!(result["interfaces"][0]["name"], "eth0", "pod {pod}: {result}");
    }
    assert!(results[10].1["msg"].as_str().unwrap().contains("an interface of that name already"), "{}", results[10].1);
    assert!(out.contains("\npinged\n"), "{out}");

    let links = said(&out, "links");
    assert_eq!(links.len(), 10 + 1 + 1 + 11, "{out}");
    for (pod, links) in &links[..10] {
        assert_eq!(names(links), ["lo", "eth0"], "pod {pod}");
        assert_eq!(links[1]["linkinfo"]["info_kind"], "macvlan");
        assert!(links[1]["ifalias"].as_str().unwrap().starts_with("mooring:1:"), "{}", links[1]);
    }
    assert_eq!(names(&links[10].1), ["lo", "eth0"], "pod 20 keeps its own");
    assert_eq!(links[10].1[1]["linkinfo"]["info_kind"], "dummy");
    assert_eq!(names(&links[11].1), ["lo", "eth0"], "the host's");
    for (pod, links) in &links[12..22] {
        assert_eq!(names(links), ["lo"], "pod {pod} after DEL");
    }
    assert_eq!(names(&links[22].1), ["lo", "eth0"], "pod 20 keeps its own at DEL too");
}

/// From a label to ping on two nodes, both networks, and the take-down, by the kernel's datapath of Open vSwitch: the other
/// tests of the lab run wherever there is no such module too, and so on the userspace datapath.
#[test]
fn the_whole_demo_on_the_kernels_datapath() {
    let said = on_older_kernel("cd \"$SRC\"\n\"$BIN/mooring-lab\" demo\n");
    assert!(said.contains("everything is right"), "{said}");
    assert!(said.contains("datapath_type: system"), "{said}");
}
