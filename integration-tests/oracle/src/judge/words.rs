//! Objects of the API that say who has what, against who has it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::{Findings, Seen, free, full_name, pod};
use crate::facts::{list, of_map, of_set, text};

/// A released address rests for at most a minute; then it is a spare or gone. Some seconds for whoever takes it away.
const REST_S: i64 = 75;
/// Spares that a node may keep of a pool.
const SPARES: usize = 8;

pub(super) fn judge(seen: &Seen<'_>, found: &mut Findings) {
    leases(seen, found);
    counts(seen, found);
    endpoints(seen, found);
    pods(seen, found);
    networks(seen, found);
}

fn leases(seen: &Seen<'_>, found: &mut Findings) {
    let mut idle: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for lease in &seen.facts.api.leases {
        let name = text(lease, "/metadata/name");
        let what = format!("lease {name}");
        let spec = |key: &str| text(lease, &format!("/spec/{key}"));
        let (node, agent, address) = (spec("node"), spec("agentID"), spec("address"));
        let holder = |key: &str| text(lease, &format!("/spec/holder/{key}"));
        let container = holder("containerID");
        if text(lease, "/metadata/labels/mooring.dev~1node") != node {
            found.stale(what.clone(), format!("its node is {node:?} and its label says otherwise"));
        }
        if node.is_empty() {
            if spec("identity").is_empty() && spec("quarantine").is_empty() {
                found.leaked(what, "it has no node, no identity and is not in quarantine");
            } else if !container.is_empty() {
                found.stale(what, "it has a holder and no node");
            }
            continue;
        }
        let Some(machine) = seen.facts.machines.iter().find(|m| m.name == node) else {
            found.stale(what, format!("there is no node {node}"));
            continue;
        };
        if agent != machine.agent_id {
            found.stale(what.clone(), format!("agent {agent} has it, and {node}'s is {}", machine.agent_id));
        }
        if container.is_empty() {
            let rested = seconds(seen.now).zip(seconds(&spec("releasedAt"))).map(|(now, then)| now - then);
            match rested {
                Some(s) if s <= REST_S => {}
                _ => idle.entry((node, spec("pool"))).or_default().push(name),
            }
            continue;
        }
        let who = format!("{}/{}", holder("podNamespace"), holder("podName"));
        let nic = holder("interface");
        match seen.on(&node).find(|s| s.container == container) {
            None => {
                found.leaked(what, format!("its holder, {nic} of pod {who} in container {container}, does not live on {node}"))
            }
            Some(s) if !s.has(&address, &nic) => found.stale(what, format!("{nic} of pod {} does not have {address}", s.pod)),
            Some(s) if s.pod != who => found.stale(what, format!("it says pod {who}, and that container is pod {}'s", s.pod)),
            Some(s) => {
                let known =
                    s.machine.journal.entries.values().flat_map(|e| list(e, "/work/held")).any(|h| text(h, "/lease") == name);
                if !known {
                    found.stale(what, format!("{node}'s journal does not know it, so that nobody will give it back"));
                }
            }
        }
    }
    for ((node, pool), names) in idle.iter().filter(|(_, names)| names.len() > SPARES) {
        found.leaked(
            format!("spares of pool {pool} on {node}"),
            format!("{} have no holder, a node may keep {SPARES}", names.len()),
        );
    }
    // An address of a pool that a pod has without a lease is free for others.
    for s in &seen.living {
        for (ip, nic) in s.addresses() {
            let ours = s.netns.links.iter().any(|l| text(l, "/ifname") == nic && text(l, "/ifalias").starts_with("mooring:1:"));
            let pooled = seen.facts.api.pools.iter().any(|p| in_ranges(p, ip));
            let leased = seen
                .facts
                .api
                .leases
                .iter()
                .any(|l| text(l, "/spec/address").parse() == Ok(ip) && text(l, "/spec/holder/containerID") == s.container);
            if ours && pooled && !leased {
                found.stale(
                    format!("address {ip}"),
                    format!("{nic} of pod {} on {} has it without a lease", s.pod, s.machine.name),
                );
            }
        }
    }
}

/// A pool's `spec.ips`: single addresses and `first-last`.
fn in_ranges(pool: &Value, ip: IpAddr) -> bool {
    list(pool, "/spec/ips").iter().any(|range| {
        let range = text(range, "");
        let (first, last) = range.split_once('-').unwrap_or((&range, &range));
        match (first.trim().parse::<IpAddr>(), last.trim().parse::<IpAddr>()) {
            (Ok(first), Ok(last)) => first.is_ipv4() == ip.is_ipv4() && (first..=last).contains(&ip),
            _ => false,
        }
    })
}

/// Pools' counts and maps against the leases.
fn counts(seen: &Seen<'_>, found: &mut Findings) {
    let of = |pool: &str| -> Vec<&Value> { seen.facts.api.leases.iter().filter(|l| text(l, "/spec/pool") == pool).collect() };
    for pool in &seen.facts.api.pools {
        let name = text(pool, "/metadata/name");
        let held = of(&name).iter().filter(|l| !text(l, "/spec/holder/containerID").is_empty()).count();
        let said = text(pool, "/status/allocatedIPCount");
        if said != held.to_string() {
            found.stale(format!("count of pool {name}"), format!("it says {said:?}, and {held} leases have a holder"));
        }
    }
    for map in &seen.facts.api.maps {
        let name = text(map, "/metadata/name");
        if !seen.facts.api.pools.iter().any(|p| text(p, "/metadata/name") == name) {
            found.leaked(format!("poolmap {name}"), "there is no such pool");
        }
        let Some(free) = free(map) else {
            found.stale(format!("poolmap {name}"), "its bits cannot be read");
            continue;
        };
        for lease in of(&name) {
            if text(lease, "/spec/address").parse().is_ok_and(|ip: IpAddr| free.contains(&ip)) {
                found.stale(format!("poolmap {name}"), format!("{} is free in it and has a lease", text(lease, "/spec/address")));
            }
        }
    }
}

fn endpoints(seen: &Seen<'_>, found: &mut Findings) {
    for endpoint in &seen.facts.api.endpoints {
        let name = full_name(endpoint);
        let what = format!("endpoint {name}");
        let fixed = list(endpoint, "/metadata/ownerReferences").iter().any(|o| o["kind"] == "StatefulSet");
        let Some(pod) = pod(seen, &name) else {
            if !fixed {
                found.leaked(what, "there is no such pod");
            }
            continue;
        };
        let Some(sandbox) = seen.living.iter().find(|s| s.pod == name) else { continue };
        let current = |key: &str| text(endpoint, &format!("/status/current/{key}"));
        if current("uid") != text(pod, "/metadata/uid") {
            found.stale(what.clone(), format!("it is of pod uid {}", current("uid")));
        }
        if current("node") != sandbox.machine.name {
            found.stale(what.clone(), format!("it says node {:?}, and the pod is on {}", current("node"), sandbox.machine.name));
        }
        for ip in list(endpoint, "/status/current/ips") {
            let nic = text(ip, "/interface");
            for address in ["/ipv4", "/ipv6"].map(|family| text(ip, family)).into_iter().filter(|a| !a.is_empty()) {
                if !sandbox.has(&address, &nic) {
                    found.stale(what.clone(), format!("{nic} of the pod does not have {address}"));
                }
            }
        }
    }
    for lease in &seen.facts.api.leases {
        let holder = |key: &str| text(lease, &format!("/spec/holder/{key}"));
        let Some(sandbox) = seen.container(&holder("containerID")) else { continue };
        let address = text(lease, "/spec/address");
        let shown = seen.facts.api.endpoints.iter().filter(|e| full_name(e) == sandbox.pod).any(|e| {
            let ips = list(e, "/status/current/ips").iter();
            let all = ips.flat_map(|ip| [text(ip, "/ipv4"), text(ip, "/ipv6")]);
            all.map(|a| a.split('/').next().unwrap_or_default().to_owned()).any(|a| a == address)
        });
        if !shown {
            found.stale(format!("endpoint {}", sandbox.pod), format!("it does not show {address} of {}", holder("interface")));
        }
    }
}

/// Pods against sandboxes.
fn pods(seen: &Seen<'_>, found: &mut Findings) {
    for s in seen.living.iter().filter(|s| s.pod != "/") {
        let there = pod(seen, &s.pod).is_some_and(|p| s.uid.is_empty() || text(p, "/metadata/uid") == s.uid);
        if !there {
            found.leaked(format!("sandbox of pod {} on {}", s.pod, s.machine.name), "there is no such pod");
        }
    }
    let running = seen.facts.api.pods.iter().filter(|p| text(p, "/status/phase") == "Running");
    for pod in running.filter(|p| p.pointer("/metadata/deletionTimestamp").is_none()) {
        let (name, uid) = (full_name(pod), text(pod, "/metadata/uid"));
        let Some(s) = seen.living.iter().find(|s| s.uid == uid) else {
            found.stale(format!("pod {name}"), "it is Running and has no sandbox");
            continue;
        };
        for ip in list(pod, "/status/podIPs").iter().map(|ip| text(ip, "/ip")) {
            if !s.addresses().iter().any(|(a, _)| ip.parse() == Ok(*a)) {
                found.stale(format!("pod {name}"), format!("its status says {ip}, which its sandbox does not have"));
            }
        }
    }
}

/// NodeNetworks against nodes and Open vSwitch.
fn networks(seen: &Seen<'_>, found: &mut Findings) {
    for network in &seen.facts.api.networks {
        let name = text(network, "/metadata/name");
        let what = format!("nodenetwork {name}");
        if !seen.facts.api.nodes.iter().any(|n| text(n, "/metadata/name") == name) {
            found.leaked(what, "there is no such node");
            continue;
        }
        let Some(machine) = seen.facts.machines.iter().find(|m| m.name == name) else { continue };
        let (generation, observed) = (text(network, "/metadata/generation"), text(network, "/status/observedGeneration"));
        if generation != observed {
            found.stale(what.clone(), format!("its generation is {generation}, and {observed:?} was observed"));
        }
        let agent = text(network, "/status/agentID");
        if agent != machine.agent_id {
            found.stale(what.clone(), format!("its agent is {agent:?}, and the node's is {}", machine.agent_id));
        }
        let Some(ovs) = &machine.ovs else { continue };
        for bridge in list(network, "/status/bridges") {
            let (bridge_name, phase) = (text(bridge, "/name"), text(bridge, "/phase"));
            let row = ovs.bridges.iter().find(|b| of_set(b.get("name")).concat() == bridge_name);
            let Some(row) = row else {
                if phase == "Ready" {
                    found.stale(what.clone(), format!("bridge {bridge_name} is said to be Ready, and Open vSwitch has none"));
                }
                continue;
            };
            let uuids = of_set(row.get("ports"));
            let ours = ovs.ports.iter().filter(|p| uuids.contains(&of_set(p.get("_uuid")).concat()));
            let attached = ours.filter(|p| of_map(p.get("external_ids"), "mooring-attachment").is_some()).count();
            if bridge["attachments"].as_u64().unwrap_or(0) != attached as u64 {
                found.stale(
                    what.clone(),
                    format!("it counts {} attachments on {bridge_name}, which has {attached}", bridge["attachments"]),
                );
            }
        }
        for row in &ovs.bridges {
            let bridge_name = of_set(row.get("name")).concat();
            let wanted = list(network, "/spec/bridges").iter().any(|b| text(b, "/name") == bridge_name);
            if of_map(row.get("external_ids"), "mooring-bridge").is_some() && !wanted {
                found.leaked(format!("ovs bridge {bridge_name} on {name}"), "it is ours, and nobody wants it");
            }
        }
    }
}

/// Seconds since 1970 of an RFC 3339 time in UTC.
fn seconds(time: &str) -> Option<i64> {
    let number = |from: usize, to: usize| time.get(from..to)?.parse::<i64>().ok();
    let utc = time.ends_with('Z') || time.ends_with("+00:00");
    let (y, m, d) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    // Days by the calendar whose year begins in March, so that leap days come last.
    let (y, m) = if m <= 2 { (y - 1, m + 9) } else { (y, m - 3) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + d - 1 - 719_468;
    utc.then_some(days * 86_400 + number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2026-11-25T21:54:48.123456Z"), Some(1_795_643_688));
        assert_eq!(seconds("2024-02-29T12:00:00Z"), Some(1_709_208_000));
        assert_eq!(seconds("2026-11-25T21:54:48+01:00"), None);
        assert_eq!(seconds(""), None);
    }

    #[test]
    fn ranges_of_a_pool_hold_addresses() {
        let pool = serde_json::json!({"spec": {"ips": ["10.0.0.5-10.0.0.9", "10.0.0.20", "fd00::1-fd00::f"]}});
        for (ip, is) in [("10.0.0.5", true), ("10.0.0.9", true), ("10.0.0.10", false), ("10.0.0.20", true), ("fd00::a", true)] {
            assert_eq!(in_ranges(&pool, ip.parse().unwrap()), is, "{ip}");
        }
    }
}
