//! A network namespace in memory that carries steps out as the kernel would: refuses doubles, routes without a way to their
//! gateway, and what is not there.

use model::addr::TABLE_MAIN;
use model::observed::{Addr, Link, LinkKind, Neighbour, NetnsState};
use model::{IfName, Route};
use planner::lookup;
use planner::{Ns, Plan, Step};

pub fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        index,
        name: IfName::new(name).unwrap(),
        kind,
        mac: None,
        permanent_mac: None,
        mtu: 1500,
        max_mtu: None,
        up: true,
        carrier: true,
        alias: None,
        link_index: None,
        link_netnsid: None,
        master: None,
        altnames: Vec::new(),
        tx_queue_len: None,
    }
}

fn on_link(state: &NetnsState, r: &Route) -> bool {
    let Some(gw) = r.gw else { return true };
    let by = |table| state.routes.iter().any(|l| l.table == table && l.gw.is_none() && l.dev == r.dev && l.dst.contains(gw));
    r.onlink || by(r.table) || by(TABLE_MAIN)
}

pub fn apply(plan: &Plan, host: &mut NetnsState, pod: &mut NetnsState) {
    for step in &plan.steps {
        one(step, host, pod).unwrap_or_else(|e| panic!("{step}: {e}\n{plan}"));
    }
}

fn one(step: &Step, host: &mut NetnsState, pod: &mut NetnsState) -> Result<(), String> {
    let at = |ns: &Ns| *ns == Ns::Pod;
    macro_rules! state {
        ($ns:expr) => {
            if at($ns) { &mut *pod } else { &mut *host }
        };
    }
    match step {
        Step::AddVeth(v) => {
            let index = 900;
            let mut h = link(index, v.host_name.as_str(), LinkKind::Veth);
            (h.mac, h.alias, h.up, h.link_netnsid) = (v.host_mac, Some(v.alias.clone()), false, Some(1));
            let mut p = link(901, v.pod_name.as_str(), LinkKind::Veth);
            (p.mac, p.alias, p.up, p.link_index, p.link_netnsid) =
                (v.pod_mac, Some(v.alias.clone()), false, Some(index), Some(0));
            if host.link(&h.name).is_some() || pod.link(&p.name).is_some() {
                return Err("name is taken".into());
            }
            host.links.push(h);
            pod.links.push(p);
        }
        Step::SetLink { ns, name, set, .. } => {
            let l = state!(ns).links.iter_mut().find(|l| &l.name == name).ok_or("no such link")?;
            l.up = set.up.unwrap_or(l.up);
            l.mac = set.mac.or(l.mac);
            l.tx_queue_len = set.tx_queue_len.or(l.tx_queue_len);
        }
        Step::DelLink { ns, name } => {
            let s = state!(ns);
            s.links.retain(|l| &l.name != name);
            s.routes.retain(|r| &r.dev != name);
            s.neighbours.retain(|n| &n.dev != name);
        }
        Step::AddAddr { ns, dev, addr, .. } => {
            state!(ns).addrs.push(Addr {
                dev: dev.clone(),
                addr: *addr,
                scope_link: false,
                permanent: true,
                tentative: false,
                dad_failed: false,
            });
        }
        Step::DelAddr { ns, dev, addr } => state!(ns).addrs.retain(|a| !(&a.dev == dev && &a.addr == addr)),
        Step::AddRoute { ns, route } => {
            let s = state!(ns);
            if !s.link(&route.dev).is_some_and(|l| l.up) {
                return Err("network is down".into());
            }
            if s.routes.iter().any(|r| r.table == route.table && r.dst == route.dst && lookup::metric(r) == lookup::metric(route))
            {
                return Err("file exists".into());
            }
            if !on_link(s, route) {
                return Err("network is unreachable".into());
            }
            s.routes.push(route.clone());
        }
        Step::DelRoute { ns, route } => {
            let s = state!(ns);
            let i = s.routes.iter().position(|r| r == route).ok_or("no such route")?;
            s.routes.remove(i);
        }
        Step::AddRule { ns, rule } => {
            let s = state!(ns);
            if s.rules.contains(rule) {
                return Err("file exists".into());
            }
            s.rules.push(rule.clone());
        }
        Step::AddNeighbour { ns, dev, ip, mac } => {
            let s = state!(ns);
            s.link(dev).ok_or("no such link")?;
            s.neighbours.push(Neighbour { dev: dev.clone(), ip: *ip, mac: Some(*mac), permanent: true });
        }
        Step::SetSysctl { .. } | Step::Probe { .. } | Step::Announce { .. } => {}
        other => return Err(format!("not expected here: {other:?}")),
    }
    Ok(())
}
