//! The plan of one wanted bridge: make or adopt it, its uplink port, its NICs. Does not know removal.

use std::collections::BTreeMap;

use model::desired::{BridgeDesired, DatapathType, FailMode, Uplink};
use model::observed::{Observed, OvsBridge, OvsPort};
use model::{BridgeName, IfName};

use super::ports::{self, Column, IdSet, Ids};
use super::removal::release;
use super::uplink::{self, Resolved};
use super::{MARK, No, Reason, SET, WAS};
use crate::step::{Bridge, Interface, LinkSet, Port, PortSet};
use crate::{Ns, Plan, Refusal, Step};

pub(crate) fn plan(want: &BridgeDesired, seen: &Observed, claimed: &mut BTreeMap<IfName, BridgeName>) -> Result<Plan, No> {
    let ovs = seen.ovs.as_ref().ok_or_else(|| no_switch(&want.name))?;
    let there = ovs.bridge(want.name.as_str());
    let datapath = datapath(want, &ovs.datapath_types)?;
    if there.is_none() {
        name_is_free(want, seen)?;
    }
    let uplink = match &want.uplink {
        None => None,
        Some(u) => Some(claim(want, u, seen, claimed)?),
    };
    let mut nics = Vec::new();
    let mut port = Vec::new();
    let mut stale = Vec::new();
    if let Some(up) = &uplink {
        (nics, port) = uplink_port(want, up, there, seen)?;
    }
    let wanted_nics: &[IfName] = uplink.as_ref().map_or(&[], |u| &u.interfaces);
    let wanted_port = uplink.as_ref().and_then(|u| existing_port(u, there)).map(|p| p.name.as_str());
    for p in there.map(|b| b.ports.as_slice()).unwrap_or_default() {
        if Some(p.name.as_str()) == wanted_port {
            continue;
        }
        if p.external_ids.contains_key(MARK) {
            stale.push(Step::DelPort { bridge: want.name.clone(), port: ports::port_as_is(p) });
        } else {
            stale.extend(release(&want.name, p));
        }
        nics.extend(restore_nics(p, seen, wanted_nics));
    }
    let mut plan = Plan::default();
    let made_now = there.is_none();
    let bridge = match there {
        None => Some(Step::AddBridge(new_bridge(want, datapath))),
        Some(b) => change_bridge(want, b),
    };
    // NICs first, so that the rows of one bridge are neighbours and go into one transaction.
    nics.into_iter().chain(stale).chain(bridge).chain(port).for_each(|s| plan.push(s));
    let made = there.is_none_or(|b| !b.external_ids.contains_key(SET) && b.external_ids.contains_key(MARK));
    let local_down = seen.host.link(&want.name).map_or(made_now, |l| !l.up);
    if made && local_down {
        plan.push(Step::SetLink { ns: Ns::Host, name: want.name.clone(), set: LinkSet::up(true), was: LinkSet::up(false) });
    }
    Ok(plan)
}

pub(crate) fn no_switch(name: &BridgeName) -> No {
    No(
        Reason::OvsUnavailable,
        Refusal::new(crate::Class::Later, "metadata.name", name, "Open vSwitch's database is not reachable on this node"),
    )
}

fn datapath(want: &BridgeDesired, offered: &[String]) -> Result<DatapathType, No> {
    let has = |d: DatapathType| offered.is_empty() || offered.iter().any(|o| o == d.as_str());
    match want.datapath_type {
        Some(d) if has(d) => Ok(d),
        Some(d) => Err(No(
            Reason::DatapathUnavailable,
            Refusal::missing("spec.datapathType", d, format!("this node's Open vSwitch offers {}", offered.join(", "))),
        )),
        None if has(DatapathType::System) => Ok(DatapathType::System),
        None => Ok(DatapathType::Netdev),
    }
}

fn name_is_free(want: &BridgeDesired, seen: &Observed) -> Result<(), No> {
    let taken = |by: String| Err(No(Reason::NameInUse, Refusal::conflict("metadata.name", &want.name, by)));
    if let Some((b, _)) = seen.ovs.as_ref().and_then(|o| o.find_interface(want.name.as_str())) {
        return taken(format!("a port of bridge {} has this name, and a bridge's local port needs it", b.name));
    }
    match seen.host.link(&want.name) {
        Some(_) => taken("an interface of this node has this name, and a bridge's local port needs it".to_owned()),
        None => Ok(()),
    }
}

fn claim(want: &BridgeDesired, u: &Uplink, seen: &Observed, claimed: &mut BTreeMap<IfName, BridgeName>) -> Result<Resolved, No> {
    let up = uplink::resolve(u, &want.name, seen)?;
    for nic in &up.interfaces {
        if let Some(other) = claimed.get(nic) {
            return Err(up.no(
                Reason::UplinkShared,
                format!("{nic} is the uplink of Bridge {other} on this node too, a NIC serves one bridge"),
            ));
        }
    }
    for nic in &up.interfaces {
        claimed.insert(nic.clone(), want.name.clone());
    }
    Ok(up)
}

/// The bridge's port that is this uplink: for a bond by its name, for a NIC whichever holds just it.
fn existing_port<'a>(up: &Resolved, there: Option<&'a OvsBridge>) -> Option<&'a OvsPort> {
    let b = there?;
    match up.interfaces.as_slice() {
        [nic] => b.ports.iter().find(|p| p.interfaces.len() == 1 && p.interfaces[0].name == nic.as_str()),
        _ => b.port(up.port.as_str()).filter(|p| same_interfaces(p, up)),
    }
}

fn same_interfaces(p: &OvsPort, up: &Resolved) -> bool {
    p.interfaces.len() == up.interfaces.len() && up.interfaces.iter().all(|n| p.interfaces.iter().any(|i| i.name == n.as_str()))
}

/// Steps for the NICs, then for the port.
fn uplink_port(
    want: &BridgeDesired,
    up: &Resolved,
    there: Option<&OvsBridge>,
    seen: &Observed,
) -> Result<(Vec<Step>, Vec<Step>), No> {
    let existing = existing_port(up, there);
    if existing.is_none() {
        // A bond of ours that gets other interfaces is made anew; what it holds now is not in the way.
        let ours = there.and_then(|b| b.port(up.port.as_str())).filter(|p| p.external_ids.contains_key(MARK));
        if let (None, Some(p)) = (ours, there.and_then(|b| b.port(up.port.as_str()))) {
            return Err(
                up.no(Reason::NameInUse, format!("the bridge has a port {} with other interfaces that is not ours", p.name))
            );
        }
        for nic in &up.interfaces {
            let leaving = there.is_some_and(|b| {
                b.ports.iter().any(|p| p.external_ids.contains_key(MARK) && p.interfaces.iter().any(|i| i.name == nic.as_str()))
            });
            if !leaving {
                uplink::fit(up, nic, &want.name, seen)?;
            }
        }
    }
    // A port that this one replaces knows what the NICs were; the new one goes on knowing it.
    let mut notes = if existing.is_none() { notes_of(up, there) } else { IdSet::new() };
    let known: Ids = notes.iter().filter_map(|(k, v)| Some((k.clone(), v.clone()?))).collect();
    let ids = existing.map_or(&known, |p| &p.external_ids);
    let mut nics = Vec::new();
    for nic in &up.interfaces {
        nics.extend(nic_steps(want, up, nic, ids, seen, &mut notes)?);
    }
    let columns = |have: &dyn Fn(&str) -> Option<String>, made: bool| port_columns(want, up, have, made);
    let port = match existing {
        None => {
            notes.retain(|_, v| v.is_some());
            notes.insert(MARK.to_owned(), Some(want.name.to_string()));
            let changes = ports::settle_made(columns(&|_| None, true));
            let interfaces = up.interfaces.iter().map(|n| Interface { name: n.to_string(), ..Interface::default() }).collect();
            let set = PortSet { external_ids: notes, ..ports::port_set(&changes, false) };
            Some(Step::AddPort { bridge: want.name.clone(), port: Port { name: up.port.to_string(), interfaces, set } })
        }
        Some(p) => {
            let have = |k: &str| ports::have_port(p, k);
            let changes = if p.external_ids.contains_key(MARK) {
                ports::settle_made(columns(&have, true))
            } else {
                let (changes, ids) = ports::settle_adopted(&p.external_ids, columns(&have, false), false);
                notes.extend(ids);
                changes
            };
            let was = PortSet { external_ids: ports::former(&p.external_ids, &notes), ..ports::port_set(&changes, true) };
            let set = PortSet { external_ids: notes, ..ports::port_set(&changes, false) };
            (set != PortSet::default()).then(|| Step::SetPort { bridge: want.name.clone(), name: p.name.clone(), set, was })
        }
    };
    Ok((nics, port.into_iter().collect()))
}

/// What our ports of this bridge know of the uplink's NICs.
fn notes_of(up: &Resolved, there: Option<&OvsBridge>) -> IdSet {
    let ports = there.map(|b| b.ports.as_slice()).unwrap_or_default().iter().filter(|p| p.external_ids.contains_key(MARK));
    let of_nic = |k: &str| up.interfaces.iter().any(|n| k == format!("{WAS}up.{n}") || k == format!("{WAS}mtu.{n}"));
    ports.flat_map(|p| &p.external_ids).filter(|(k, _)| of_nic(k)).map(|(k, v)| (k.clone(), Some(v.clone()))).collect()
}

/// Defaults count as not named on what was there before.
fn port_columns(want: &BridgeDesired, up: &Resolved, have: &dyn Fn(&str) -> Option<String>, made: bool) -> Vec<Column> {
    let column =
        |key, value: Option<String>, default: bool| Column { key, have: have(key), want: (made || !default).then_some(value) };
    let mut out = vec![column("trunks", ports::trunks_text(&want.allowed_vlans), want.allowed_vlans.is_empty())];
    if made {
        out.push(column("tag", None, true));
        out.push(column("vlan_mode", None, true));
    }
    if let (Some(Uplink::Bond(b)), true) = (&want.uplink, up.interfaces.len() > 1) {
        let number = |n: u32| (n != 0).then(|| n.to_string());
        out.push(column("bond_mode", Some(b.mode.to_string()), b.mode == Default::default()));
        out.push(column("lacp", Some(b.lacp.to_string()), b.lacp == Default::default()));
        out.push(column("bond_updelay", number(b.updelay_ms), b.updelay_ms == 0));
        out.push(column("bond_downdelay", number(b.downdelay_ms), b.downdelay_ms == 0));
    }
    out
}

/// Up, and the MTU where one is wanted; `notes` gets what it was before.
fn nic_steps(
    want: &BridgeDesired,
    up: &Resolved,
    nic: &IfName,
    ids: &Ids,
    seen: &Observed,
    notes: &mut IdSet,
) -> Result<Option<Step>, No> {
    let Some(link) = seen.host.link(nic) else { return Ok(None) };
    let (mut set, mut was) = (LinkSet::default(), LinkSet::default());
    let noted = |key: &String| ids.get(key);
    let key = format!("{WAS}up.{nic}");
    if !link.up {
        (set.up, was.up) = (Some(true), Some(false));
        if noted(&key).is_none() {
            notes.insert(key, Some("false".to_owned()));
        }
    }
    let key = format!("{WAS}mtu.{nic}");
    let mut mtu = |to: u32| (set.mtu, was.mtu) = (Some(to), Some(link.mtu));
    match (want.mtu, noted(&key)) {
        (Some(m), before) if m.get() != link.mtu => {
            if let Some(max) = link.max_mtu.filter(|max| *max != 0 && m.get() > *max) {
                return Err(No(
                    Reason::InvalidMtu,
                    Refusal::invalid("spec.mtu", m, format!("{nic} takes at most {max} ({})", up.field)),
                ));
            }
            mtu(m.get());
            if before.is_none() {
                notes.insert(key, Some(link.mtu.to_string()));
            }
        }
        (None, Some(before)) => {
            before.parse().ok().filter(|b| *b != link.mtu).into_iter().for_each(mtu);
            notes.insert(key, None);
        }
        _ => {}
    }
    Ok((set != LinkSet::default()).then(|| Step::SetLink { ns: Ns::Host, name: nic.clone(), set, was }))
}

/// NICs of a port that goes get back what they had.
pub(crate) fn restore_nics(p: &OvsPort, seen: &Observed, but: &[IfName]) -> Vec<Step> {
    let one = |i: &model::observed::OvsInterface| {
        let link = seen.host.links.iter().find(|l| l.name.as_str() == i.name).filter(|l| !but.contains(&l.name))?;
        let (mut set, mut was) = (LinkSet::default(), LinkSet::default());
        let note = |what: &str| p.external_ids.get(&format!("{WAS}{what}.{}", i.name));
        if let Some(m) = note("mtu").and_then(|m| m.parse().ok()).filter(|m| *m != link.mtu) {
            (set.mtu, was.mtu) = (Some(m), Some(link.mtu));
        }
        if note("up").is_some_and(|v| v == "false") && link.up {
            (set.up, was.up) = (Some(false), Some(true));
        }
        (set != LinkSet::default()).then(|| Step::SetLink { ns: Ns::Host, name: link.name.clone(), set, was })
    };
    p.interfaces.iter().filter_map(one).collect()
}

fn bridge_columns(want: &BridgeDesired, have: &dyn Fn(&str) -> Option<String>, made: bool) -> Vec<Column> {
    let column =
        |key, value: Option<String>, default: bool| Column { key, have: have(key), want: (made || !default).then_some(value) };
    let mut out = vec![
        column(
            "fail_mode",
            (want.fail_mode != FailMode::Standalone).then(|| want.fail_mode.to_string()),
            want.fail_mode == FailMode::Standalone,
        ),
        column("mcast_snooping", Some(want.mcast_snooping.to_string()), !want.mcast_snooping),
        column("hwaddr", want.hwaddr.map(|m| m.to_string()), want.hwaddr.is_none()),
        column("mtu_request", want.mtu.map(|m| m.to_string()), want.mtu.is_none()),
    ];
    if let Some(d) = want.datapath_type {
        out.push(column("datapath_type", Some(d.to_string()), false));
    } else if !made {
        out.push(column("datapath_type", None, true));
    }
    out
}

fn new_bridge(want: &BridgeDesired, datapath: DatapathType) -> Bridge {
    let changes = ports::settle_made(bridge_columns(want, &|k| (k == "mcast_snooping").then(|| "false".to_owned()), true));
    let mut set = ports::bridge_set(&changes, false);
    set.datapath_type = Some(datapath.to_string());
    set.external_ids.insert(MARK.to_owned(), Some(want.name.to_string()));
    Bridge { name: want.name.clone(), set }
}

fn change_bridge(want: &BridgeDesired, b: &OvsBridge) -> Option<Step> {
    let ids = &b.external_ids;
    let made = ids.contains_key(MARK) && !ids.contains_key(SET);
    let columns = bridge_columns(want, &|k| ports::have_bridge(b, k), made);
    let (changes, mut notes) =
        if made { (ports::settle_made(columns), IdSet::new()) } else { ports::settle_adopted(ids, columns, true) };
    if ids.get(MARK).map(String::as_str) != Some(want.name.as_str()) {
        notes.insert(MARK.to_owned(), Some(want.name.to_string()));
    }
    let mut was = ports::bridge_set(&changes, true);
    was.external_ids = ports::former(ids, &notes);
    let mut set = ports::bridge_set(&changes, false);
    set.external_ids = notes;
    (set != Default::default()).then(|| Step::SetBridge { name: want.name.clone(), set, was })
}
