//! The same pods as recorded with the peer's coordinator: for many sources and destinations, does traffic leave by the same
//! NIC? Each deliberate difference is listed with its reason; one that no longer shows, or a new one, fails the test.
#![allow(clippy::unwrap_used)]

#[path = "support/net.rs"]
mod net;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use model::addr::TABLE_MAIN;
use model::observed::{Addr, LinkKind, MacvlanMode, NetnsState};
use model::{AttachmentId, Cidr, IfAddr, IfName, Mtu, Owner, Route, Rule, RunBy};
use planner::coordinate::{self, CoordinateInput, Mode, Settings};
use planner::{Gateways, Nic, NicRoute, Plan, Refusal, Step, lookup};
use serde_json::Value;

fn fixtures() -> Option<PathBuf> {
    let near = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    let found = std::env::var_os("MOORING_FIXTURES").map(PathBuf::from).into_iter().chain([near]).find(|p| p.is_dir());
    if found.is_none() {
        println!("skipped: fixtures absent");
    }
    found.map(|p| p.join("pods"))
}

fn json(path: PathBuf) -> Vec<Value> {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
}

fn name(s: &str) -> IfName {
    IfName::new(s).unwrap()
}

fn text<'a>(v: &'a Value, key: &str) -> Option<&'a str> {
    v.get(key).and_then(Value::as_str)
}

fn table(v: &Value) -> Option<u32> {
    match text(v, "table") {
        None | Some("main") => Some(TABLE_MAIN),
        Some("local" | "default") => None,
        Some(n) => n.parse().ok(),
    }
}

fn net(s: &str, ipv4: bool) -> Cidr {
    if s == "default" {
        return if ipv4 { Cidr::default_v4() } else { Cidr::default_v6() };
    }
    s.parse().unwrap_or_else(|_| Cidr::host(s.parse().unwrap()))
}

/// (routes, destinations that the kernel made itself)
fn routes(dir: &Path, who: &str) -> (Vec<Route>, Vec<Route>) {
    let (mut all, mut kernel) = (Vec::new(), Vec::new());
    for ipv4 in [true, false] {
        let file = dir.join(format!("{who}.route{}.json", if ipv4 { 4 } else { 6 }));
        for v in json(file) {
            let (Some(t), None | Some("unicast")) = (table(&v), text(&v, "type")) else { continue };
            let hops = v.get("nexthops").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![v.clone()]);
            for h in hops {
                let gw = text(&h, "gateway").map(|g| g.parse().unwrap());
                let mut r = Route::new(net(text(&v, "dst").unwrap(), ipv4), gw, name(text(&h, "dev").unwrap())).in_table(t);
                r.src = text(&v, "prefsrc").map(|s| s.parse().unwrap());
                r.metric = v.get("metric").and_then(Value::as_u64).map(|m| m as u32);
                if text(&v, "protocol") == Some("kernel") {
                    kernel.push(r.clone());
                }
                all.push(r);
            }
        }
    }
    (all, kernel)
}

fn rules(dir: &Path) -> Vec<Rule> {
    let mut out = Vec::new();
    for ipv4 in [true, false] {
        for v in json(dir.join(format!("pod.rule{}.json", if ipv4 { 4 } else { 6 }))) {
            let from = text(&v, "src").filter(|s| *s != "all").map(|s| net(s, ipv4));
            let Some(t) = table(&v) else { continue };
            let priority = v["priority"].as_u64().unwrap() as u32;
            out.push(Rule { priority, from, to: None, iif: None, fwmark: text(&v, "fwmark").map(|_| 1), table: t, ipv4 });
        }
    }
    out
}

/// Links and addresses of the node were recorded with the eight topologies only; it is the same node each time.
fn state(dir: &Path, who: &str) -> NetnsState {
    let links = if dir.join(format!("{who}.link.json")).is_file() { dir.to_owned() } else { dir.join("../overlay-bridge-ds") };
    let mut s = links_and_addresses(&links, who);
    s.routes = routes(dir, who).0;
    s
}

fn links_and_addresses(dir: &Path, who: &str) -> NetnsState {
    let mut s = NetnsState::default();
    let kinds: BTreeMap<String, String> = json(dir.join(format!("{who}.link.json")))
        .iter()
        .map(|l| {
            (
                text(l, "ifname").unwrap().to_owned(),
                l.pointer("/linkinfo/info_kind").and_then(Value::as_str).unwrap_or("").to_owned(),
            )
        })
        .collect();
    for v in json(dir.join(format!("{who}.addr.json"))) {
        let n = text(&v, "ifname").unwrap();
        let kind = match kinds.get(n).map(String::as_str) {
            Some("veth") => LinkKind::Veth,
            Some("macvlan") => LinkKind::Macvlan { mode: MacvlanMode::Bridge },
            Some("bridge") => LinkKind::Bridge,
            _ if n == "lo" => LinkKind::Loopback,
            _ => LinkKind::Physical,
        };
        let mut l = net::link(v["ifindex"].as_u64().unwrap() as u32, n, kind);
        l.mac = text(&v, "address").and_then(|m| m.parse().ok());
        s.links.push(l);
        for a in v["addr_info"].as_array().unwrap() {
            let Ok(addr) = IfAddr::new(text(a, "local").unwrap().parse().unwrap(), a["prefixlen"].as_u64().unwrap() as u8) else {
                continue;
            };
            let scope_link = text(a, "scope") == Some("link");
            s.addrs.push(Addr { dev: name(n), addr, scope_link, permanent: true, tentative: false, dad_failed: false });
        }
    }
    s
}

/// Settings as the recorded pod had them: coordinator of its NADs over the SpiderCoordinator, the annotation over both.
fn settings(dir: &Path) -> Settings {
    let nets = |l: &[&str]| l.iter().map(|s| net(s, true)).collect::<Vec<_>>();
    let mut out = Settings {
        hijack: nets(&["169.254.0.0/16"]),
        cidrs: nets(&["10.244.0.0/16", "fd00:10:244::/56", "10.96.0.0/12", "fd00:10:96::/112"]),
        ..Settings::default()
    };
    let scc = std::fs::read_to_string(dir.join("spidercoordinator.yaml")).unwrap_or_default();
    if let Some(n) = scc.lines().find_map(|l| l.trim().strip_prefix("hostRuleTable: ")) {
        out.host_rule_table = n.parse().unwrap();
    }
    let input = std::fs::read_to_string(dir.join("input.yaml")).unwrap();
    for line in input.lines() {
        if let Some(nic) = line.trim().strip_prefix("ipam.spidernet.io/default-route-nic: ") {
            (out.default_route_nic, out.default_route_nic_by_pod) = (Some(name(nic)), true);
        }
        let Some(conf) = line.trim().strip_prefix("config: '").and_then(|c| c.strip_suffix('\'')) else { continue };
        let conf: Value = serde_json::from_str(conf).unwrap();
        for c in conf["plugins"].as_array().unwrap().iter().filter(|p| p["type"] == "coordinator") {
            out.mode = match text(c, "mode") {
                Some("underlay") => Mode::Underlay,
                Some("overlay") => Mode::Overlay,
                Some("disabled") => Mode::Disabled,
                _ => Mode::Auto,
            };
            out.tune_pod_routes = c["tunePodRoutes"].as_bool().unwrap_or(true);
            if !out.default_route_nic_by_pod {
                out.default_route_nic = text(c, "podDefaultRouteNic").map(name);
            }
            if let Some(l) = c.get("hijackCIDR").and_then(Value::as_array) {
                out.hijack = l.iter().map(|v| net(v.as_str().unwrap(), true)).collect();
            }
            if let Some((a, b)) = text(c, "podMACPrefix").and_then(|p| p.split_once(':')) {
                out.mac_prefix = Some([a, b].map(|x| u8::from_str_radix(x, 16).unwrap()));
            }
            out.rp_filter = c.get("podRPFilter").and_then(Value::as_u64).map_or(Some(0), |n| Some(n as u8));
            out.veth_link_address = text(c, "vethLinkAddress").map(|s| s.parse().unwrap());
            out.veth_mtu = c.get("vethMTU").and_then(Value::as_u64).map(|n| Mtu::new(n).unwrap());
            for r in c.get("policyRoutes").and_then(Value::as_array).into_iter().flatten() {
                out.policy_routes.push((net(text(r, "dst").unwrap(), true), text(r, "gw").unwrap().parse().unwrap()));
            }
        }
    }
    out
}

struct Case {
    theirs: NetnsState,
    ours: NetnsState,
    host: NetnsState,
    plans: Vec<Plan>,
    nics: Vec<IfName>,
}

/// The pod's state right after its main plugins, from the recording: the kernel's own routes, each NIC's default, and on a
/// foreign eth0 what its plugin made besides.
fn before(dir: &Path, theirs: &NetnsState, nics: &[IfName], s: &Settings) -> NetnsState {
    let (all, kernel) = routes(dir, "pod");
    let mut pod = theirs.clone();
    pod.rules.clear();
    pod.links.retain(|l| l.name.as_str() != "veth0");
    pod.addrs.retain(|a| a.dev.as_str() != "veth0");
    pod.routes = kernel.into_iter().filter(|r| r.dev.as_str() != "veth0").collect();
    let cluster = s.cluster();
    for r in &all {
        let default = r.dst.is_default() && nics.contains(&r.dev);
        let of_the_plugin = r.table == TABLE_MAIN
            && r.dev == nics[0]
            && !cluster.contains(&r.dst)
            && r.dst != Cidr::host("10.6.0.11".parse().unwrap())
            && r.dst != Cidr::host("fd00:10:6::11".parse().unwrap())
            && !r.dst.is_default()
            && pod.link(&r.dev).is_some_and(|l| l.kind == LinkKind::Veth);
        if (default || of_the_plugin) && !pod.routes.iter().any(|x| x.dst == r.dst && x.dev == r.dev) {
            pod.routes.push(Route { src: None, metric: None, ..r.clone() }.in_table(TABLE_MAIN));
        }
    }
    pod
}

fn run(dir: &Path) -> Result<Case, Refusal> {
    let s = settings(dir);
    let mut theirs = state(dir, "pod");
    theirs.rules = rules(dir);
    let nics: Vec<IfName> =
        theirs.links.iter().map(|l| l.name.clone()).filter(|n| !["lo", "veth0"].contains(&n.as_str())).collect();
    let nics = if nics.is_empty() { vec![name("eth0"), name("net1")] } else { nics };
    let mut pod = before(dir, &theirs, &nics, &s);
    let mut host = state(dir, "host");
    // The recorded pair and what leads to it are not there before our own.
    host.routes.retain(|r| r.table == TABLE_MAIN);
    let full = pod.clone();
    // NICs come one after the other.
    pod.links.retain(|l| l.name.as_str() == "lo" || l.name == nics[0]);
    pod.routes.retain(|r| r.dev == nics[0]);
    let mut plans = Vec::new();
    for (i, nic) in nics.iter().enumerate() {
        if i > 0 {
            pod.links.extend(full.link(nic).cloned());
            pod.routes.extend(full.routes.iter().filter(|r| &r.dev == nic).cloned());
        }
        let foreign = full.link(nic).is_some_and(|l| l.kind == LinkKind::Veth);
        if foreign {
            continue;
        }
        let addrs: Vec<IfAddr> = full.addrs_of(nic).filter(|a| !a.scope_link).map(|a| a.addr).collect();
        let default = |v4: bool| {
            full.routes.iter().find(|r| &r.dev == nic && r.dst.is_default() && r.dst.is_ipv4() == v4).and_then(|r| r.gw)
        };
        let gateways = Gateways { v4: default(true), v6: default(false) };
        let routes =
            [gateways.v4, gateways.v6].into_iter().flatten().map(|gw| NicRoute::new(Cidr::default_for(gw), Some(gw))).collect();
        let n = Nic { addrs, gateways, routes, has_ipam: true };
        let owner = Owner { attachment: AttachmentId::of("c1", nic.as_str()), by: RunBy::Agent };
        fn input<'a>(
            owner: Owner,
            ifname: &'a IfName,
            nic: &'a Nic,
            settings: &'a Settings,
            pod_nics: &'a [IfName],
            pod: &'a NetnsState,
            host: &'a NetnsState,
        ) -> CoordinateInput<'a> {
            CoordinateInput { owner, ifname, nic, settings, pod_nics, pod, host }
        }
        let plan = coordinate::plan(&input(owner, nic, &n, &s, &nics, &pod, &host))?;
        net::apply(&plan, &mut host, &mut pod);
        let again = coordinate::plan(&input(owner, nic, &n, &s, &nics, &pod, &host))?;
        let more: Vec<_> = again.steps.iter().filter(|s| !matches!(s, Step::SetSysctl { .. })).collect();
        assert!(more.is_empty(), "{}: {nic}: a second plan still has {more:?}", dir.display());
        plans.push(plan);
    }
    Ok(Case { theirs, ours: pod, host, plans, nics })
}

/// Name, destination.
const TO: [(&str, &str); 21] = [
    ("node", "10.6.0.11"),
    ("other node", "10.6.0.12"),
    ("pod here", "10.244.0.77"),
    ("pod elsewhere", "10.244.5.5"),
    ("service", "10.96.0.10"),
    ("node-local dns", "169.254.20.10"),
    ("hijacked", "10.200.1.1"),
    ("hijacked address", "10.201.0.5"),
    ("policy route", "172.20.1.1"),
    ("outside", "8.8.8.8"),
    ("segment 6", "10.6.3.3"),
    ("segment 7", "10.7.3.3"),
    ("node", "fd00:10:6::11"),
    ("other node", "fd00:10:6::12"),
    ("pod here", "fd00:10:244::77"),
    ("pod elsewhere", "fd00:10:244:5::5"),
    ("service", "fd00:10:96::10"),
    ("hijacked", "fd00:200::1"),
    ("policy route", "fd00:172::1"),
    ("outside", "2001:4860:4860::8888"),
    ("segment 6", "fd00:10:6::3:3"),
];

/// (reason, does it explain this difference?) Arguments: case, source NIC (empty: none chosen), destination, theirs, ours.
type Reason = (&'static str, fn(&str, &str, &str, &str, &str) -> bool);
const DIFFERENCES: [Reason; 4] = [
    (
        "cluster networks go through the node in every table: theirs sends them by the first further NIC's own gateway, which has no way to pods and services",
        |_, src, to, theirs, ours| {
            src != "eth0"
                && !src.is_empty()
                && ["pod here", "pod elsewhere", "service", "node-local dns", "hijacked", "hijacked address"].contains(&to)
                && theirs == src
                && (ours == "eth0" || ours == "veth0")
        },
    ),
    (
        "eth0 has its table 100 beside a second NIC on the physical network: what comes from its address leaves by it, although another NIC has the default or that segment",
        |case, src, to, theirs, ours| {
            case.starts_with("two-macvlan")
                && src == "eth0"
                && ["outside", "policy route", "hijacked", "hijacked address", "segment 7"].contains(&to)
                && theirs == "net1"
                && ours == "eth0"
        },
    ),
    (
        "a further NIC keeps its table when it has the default: what comes from its address leaves by it, not by eth0 whose segment it also reaches",
        |case, src, _, theirs, ours| case.contains("defroute-net1") && src == "net1" && theirs == "eth0" && ours == "net1",
    ),
    (
        "without tunePodRoutes main still has one default, eth0's; theirs has two, the last NIC first",
        |case, _, _, theirs, ours| case.starts_with("notune-on-net1") && theirs == "net1" && ours == "eth0",
    ),
];

#[test]
fn traffic_leaves_by_the_recorded_nic_but_for_listed_reasons() {
    let Some(root) = fixtures() else { return };
    let mut dirs: Vec<PathBuf> =
        std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("meta.txt").is_file()).collect();
    dirs.sort();
    let (mut compared, mut unexplained, mut used) = (0, Vec::new(), BTreeSet::new());
    for dir in &dirs {
        let case = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let meta = std::fs::read_to_string(dir.join("meta.txt")).unwrap();
        // Failed ones have nothing to compare; the same addresses on two NICs cannot be compared; no coordinator, no plan.
        if !meta.contains("ADD exit code: 0") || case == "same-nad-twice" || case.starts_with("nocoord") {
            continue;
        }
        let c = run(dir).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert!(!c.plans.is_empty(), "{case}");
        let mut sources: Vec<(String, Option<IpAddr>)> = vec![(String::new(), None)];
        for nic in &c.nics {
            sources.extend(c.theirs.addrs_of(nic).filter(|a| !a.scope_link).map(|a| (nic.to_string(), Some(a.addr.ip()))));
        }
        for (what, to) in TO {
            let to: IpAddr = to.parse().unwrap();
            for (nic, src) in sources.iter().filter(|(_, s)| s.is_none_or(|s| s.is_ipv4() == to.is_ipv4())) {
                let dev = |s: &NetnsState| lookup::route(s, *src, to, None).map_or("-".to_owned(), |r| r.dev.to_string());
                let (theirs, ours) = (dev(&c.theirs), dev(&c.ours));
                compared += 1;
                if theirs == ours {
                    continue;
                }
                match DIFFERENCES.iter().position(|(_, f)| f(&case, nic, what, &theirs, &ours)) {
                    Some(i) => {
                        used.insert(i);
                    }
                    None => unexplained.push(format!(
                        "{case}: from {} to {what} {to}: theirs {theirs}, ours {ours}",
                        if nic.is_empty() { "-" } else { nic }
                    )),
                }
            }
        }
    }
    println!("{compared} lookups compared in {} folders", dirs.len());
    assert!(compared > 500, "only {compared} lookups were compared");
    assert!(unexplained.is_empty(), "{} unexplained:\n{}", unexplained.len(), unexplained.join("\n"));
    for (i, (reason, _)) in DIFFERENCES.iter().enumerate() {
        assert!(used.contains(&i), "no longer a difference: {reason}");
    }
}

#[test]
fn what_failed_with_theirs_works_or_is_refused_with_the_reason() {
    let Some(root) = fixtures() else { return };
    let outcome = |case: &str| {
        run(&root.join(case)).map(|c| c.plans.iter().map(|p| p.steps.len()).sum::<usize>()).map_err(|e| e.to_string())
    };
    // Recorded after the rollback, so the pod is empty: only what does not need its NICs can be judged here.
    for case in ["disabled-on-eth0", "disabled-on-net1"] {
        assert_eq!(outcome(case), Ok(0), "{case}");
    }
    assert_eq!(
        outcome("ann-defroute-missing-nic").unwrap_err(),
        "default-route-nic \"net7\": the pod has no such NIC, it has eth0, net1"
    );
}

#[test]
fn the_host_reaches_every_underlay_address_through_the_pod_itself() {
    let Some(root) = fixtures() else { return };
    for (case, ip, table, dev, gw) in [
        ("overlay-bridge-v4", "10.6.1.10", 500, "cni0", Some("10.244.0.2")),
        ("overlay-bridge-ds", "fd00:10:6::1:10", 500, "cni0", Some("fd00:10:244::2")),
        ("single-underlay-v4", "10.6.1.10", 500, "mvh-", None),
        ("two-macvlan-v4", "10.7.1.10", 500, "mvh-", None),
        ("cr-hostruletable-on-net1", "10.6.1.10", 600, "cni0", Some("10.244.0.2")),
    ] {
        let c = run(&root.join(case)).unwrap_or_else(|e| panic!("{case}: {e}"));
        let to: IpAddr = ip.parse().unwrap();
        let Some(r) = c.host.routes.iter().find(|r| r.dst == Cidr::host(to) && r.table != TABLE_MAIN) else {
            panic!("{case}: {:?}", c.host.routes)
        };
        assert_eq!(lookup::route(&c.host, None, to, None), Some(r), "{case}");
        assert!(r.dev.as_str().starts_with(dev), "{case}: {r}");
        assert_eq!(r.gw, gw.map(|g| g.parse().unwrap()), "{case}");
        if case.starts_with("cr-") {
            assert_ne!(r.table, 500, "{case}: {r}");
        } else {
            assert_eq!(r.table, table, "{case}");
        }
    }
}
