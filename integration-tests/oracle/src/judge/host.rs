//! What is on a node that no living pod stands for, and what the node's own files say that is not so.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::{Findings, Seen};
use crate::facts::{Machine, Ovs, list, of_map, of_set, text};

/// `lo`, and what Open vSwitch makes for itself.
const ALWAYS: [&str; 3] = ["lo", "ovs-netdev", "ovs-system"];
/// ip-rule(8): local, main, default.
const KERNEL_RULES: [u64; 3] = [0, 32766, 32767];
/// Of the host's rule that leads to pods' addresses, where no SpiderCoordinator says another.
const HOST_TABLE: &str = "500";

pub(super) fn judge(seen: &Seen<'_>, m: &Machine, found: &mut Findings) {
    namespaces(seen, m, found);
    links(seen, m, found);
    match &m.ovs {
        Some(ovs) => ports(seen, m, ovs, found),
        None => found.stale(format!("ovs on {}", m.name), "it does not answer"),
    }
    routes(seen, m, found);
    files(seen, m, found);
    journal(seen, m, found);
}

/// The runtime's own half: without it nothing could be said about the product's.
fn namespaces(seen: &Seen<'_>, m: &Machine, found: &mut Findings) {
    for n in &m.namespaces {
        if !seen.on(&m.name).any(|s| s.netns.name == n.name) {
            found.leaked(format!("namespace {} on {}", n.name, m.name), "the runtime has no sandbox there");
            for link in n.links.iter().filter(|l| text(l, "/ifalias").starts_with("mooring:1:")) {
                let what = format!("link {} in namespace {} on {}", text(link, "/ifname"), n.name, m.name);
                found.leaked(what, format!("its mark {} is of no living pod's NIC", text(link, "/ifalias")));
            }
        }
    }
    for record in &m.records {
        let container = text(record, "/containerId");
        if seen.container(&container).is_none() {
            let path = text(record, "/netns");
            found.stale(format!("record of sandbox {container} on {}", m.name), format!("{path} is gone"));
        }
    }
}

fn links(seen: &Seen<'_>, m: &Machine, found: &mut Findings) {
    let bridges: Vec<String> = m.ovs.iter().flat_map(|o| &o.bridges).map(|b| of_set(b.get("name")).concat()).collect();
    for link in &m.links {
        let (name, alias) = (text(link, "/ifname"), text(link, "/ifalias"));
        let what = format!("link {name} on {}", m.name);
        // The far end's namespace by its name below /run/netns.
        let peer = text(link, "/link_netns");
        if let Some(id) = alias.strip_prefix("mooring:1:").map(|id| id.trim_end_matches(":alone")) {
            match seen.attached(id) {
                None => found.leaked(what, format!("its mark {alias} is of no living pod's NIC")),
                Some(s) if s.machine.name != m.name => {
                    found.stale(what, format!("it is marked for pod {} on {}", s.pod, s.machine.name))
                }
                Some(s) if !peer.is_empty() && peer != s.netns.name => {
                    found.stale(what, format!("it is marked for pod {} and leads to {peer}", s.pod))
                }
                Some(_) => {}
            }
        } else if ALWAYS.contains(&name.as_str()) || m.uplinks.contains(&name) || bridges.contains(&name) {
        } else if !seen.on(&m.name).any(|s| s.netns.name == peer) {
            found.leaked(what, "it leads to no living pod and is no NIC of the node");
        }
    }
}

fn ports(seen: &Seen<'_>, m: &Machine, ovs: &Ovs, found: &mut Findings) {
    let by_uuid = |rows: &[BTreeMap<String, Value>]| -> BTreeMap<String, BTreeMap<String, Value>> {
        rows.iter().map(|r| (of_set(r.get("_uuid")).concat(), r.clone())).collect()
    };
    let (ports, interfaces) = (by_uuid(&ovs.ports), by_uuid(&ovs.interfaces));
    for bridge in &ovs.bridges {
        let bridge_name = of_set(bridge.get("name")).concat();
        for uuid in of_set(bridge.get("ports")) {
            let Some(port) = ports.get(&uuid) else { continue };
            let name = of_set(port.get("name")).concat();
            let ids = port.get("external_ids");
            let what = format!("ovs port {name} of {bridge_name} on {}", m.name);
            match of_map(ids, "mooring-attachment") {
                Some(id) => match seen.attached(&id) {
                    None => found.leaked(what.clone(), format!("its mark {id} is of no living pod's NIC")),
                    Some(s) => {
                        let path = of_map(ids, "contNetns").unwrap_or_default();
                        if !path.ends_with(&format!("/{}", s.netns.name)) {
                            found.stale(what.clone(), format!("contNetns is {path}, and pod {} is in {}", s.pod, s.netns.name));
                        }
                    }
                },
                None if name == bridge_name || m.uplinks.contains(&name) => {}
                None => found.leaked(what.clone(), "it is no pod's and no NIC of the node"),
            }
            for interface in of_set(port.get("interfaces")).iter().filter_map(|i| interfaces.get(i)) {
                let (ofport, error) = (of_set(interface.get("ofport")).concat(), of_set(interface.get("error")).concat());
                if ofport == "-1" || !error.is_empty() {
                    found.stale(what.clone(), format!("its interface has ofport {ofport} and error {error:?}"));
                }
            }
        }
    }
}

/// Routes, rules and neighbour entries of the host that are for one address.
fn routes(seen: &Seen<'_>, m: &Machine, found: &mut Findings) {
    let living = |text: &str| {
        let ip: Option<IpAddr> = text.split('/').next().and_then(|t| t.parse().ok());
        ip.is_some_and(|ip| seen.on(&m.name).any(|s| s.addresses().iter().any(|(a, _)| *a == ip)))
    };
    for route in &m.routes {
        let (dst, dev, kind) = (text(route, "/dst"), text(route, "/dev"), text(route, "/type"));
        let one = dst.parse::<IpAddr>().is_ok() || dst.ends_with("/32") || dst.ends_with("/128");
        let kernels = text(route, "/protocol") == "kernel" || dev == "lo" || !matches!(kind.as_str(), "" | "unicast");
        if one && !kernels && !living(&dst) {
            let table = text(route, "/table");
            found.leaked(
                format!("route to {dst} in table {} on {}", if table.is_empty() { "main" } else { &table }, m.name),
                format!("by {dev}, and no living pod here has it"),
            );
        }
    }
    let coordinators = seen.facts.api.coordinators.iter().map(|c| text(c, "/spec/hostRuleTable"));
    let tables: Vec<String> = coordinators.chain([HOST_TABLE.to_owned()]).collect();
    for rule in &m.rules {
        let priority = rule["priority"].as_u64().unwrap_or(0);
        let (src, dst, table) = (text(rule, "/src"), text(rule, "/dst"), text(rule, "/table"));
        let whole = matches!(src.as_str(), "" | "all") && matches!(dst.as_str(), "" | "all");
        if KERNEL_RULES.contains(&priority) || (whole && tables.contains(&table)) || living(&src) || living(&dst) {
            continue;
        }
        found.leaked(format!("rule {priority} on {}", m.name), format!("from {src} to {dst} lookup {table}: of no living pod"));
    }
    for n in &m.neighbours {
        let (dst, dev) = (text(n, "/dst"), text(n, "/dev"));
        if !living(&dst) && dev != "lo" {
            found.leaked(format!("neighbour {dst} on {}", m.name), format!("permanent on {dev}, and no living pod here has it"));
        }
    }
}

fn files(seen: &Seen<'_>, m: &Machine, found: &mut Findings) {
    for file in &m.spool {
        found.leaked(format!("spool file {file} on {}", m.name), "a DEL that nobody carries out");
    }
    for (address, container) in &m.host_local {
        if seen.container(container).is_none() {
            found.leaked(format!("host-local's {address} on {}", m.name), format!("container {container} does not live"));
        }
    }
}

fn journal(seen: &Seen<'_>, m: &Machine, found: &mut Findings) {
    for (key, entry) in &m.journal.entries {
        let what = format!("journal entry {key} on {}", m.name);
        let container = text(entry, "/key/container_id");
        let Some(sandbox) = seen.on(&m.name).find(|s| s.container == container) else {
            found.leaked(what, "its container does not live");
            continue;
        };
        let state = text(entry, "/state");
        if state != "added" {
            found.stale(what.clone(), format!("it is {state}, and pod {} has its network", sandbox.pod));
        }
        if let Some(netns) = entry.get("netns").filter(|n| !n.is_null())
            && (netns["dev"].as_u64(), netns["ino"].as_u64()) != (Some(sandbox.netns.dev), Some(sandbox.netns.ino))
        {
            found.stale(what.clone(), format!("it names namespace {netns}, and {} is {}", sandbox.netns.name, sandbox.netns.ino));
        }
        for held in list(entry, "/work/held") {
            let name = text(held, "/lease");
            let holds = |l: &Value| text(l, "/metadata/name") == name && text(l, "/spec/holder/containerID") == container;
            let there = seen.facts.api.leases.iter().any(holds);
            if !there {
                found.stale(what.clone(), format!("lease {name} is not held by its container"));
            }
        }
    }
    // What a pod has by our mark is in the journal, or DEL and the next start do not know of it.
    for s in seen.on(&m.name) {
        for link in &s.netns.links {
            let (nic, alias) = (text(link, "/ifname"), text(link, "/ifalias"));
            let ours = alias.starts_with("mooring:1:") && !alias.ends_with(":alone");
            if ours && !m.journal.entries.values().any(|e| text(e, "/key/container_id") == s.container) {
                found.stale(format!("journal on {}", m.name), format!("it does not know {nic} of pod {}", s.pod));
            }
        }
    }
}
