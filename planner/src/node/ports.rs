//! Columns of bridges and ports as texts: what we set, what was there before, and the way back. Does not know which are wanted.

use std::collections::BTreeMap;

use model::observed::{OvsBridge, OvsPort};
use model::{Tag, Trunks};

use super::{MARK, SET, WAS};
use crate::step::{Bridge, BridgeSet, Interface, Port, PortSet};

pub(crate) type Ids = BTreeMap<String, String>;
pub(crate) type IdSet = BTreeMap<String, Option<String>>;

/// One column: its value, and what it should be. `want` none: the spec does not name it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub key: &'static str,
    pub have: Option<String>,
    pub want: Option<Option<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub key: &'static str,
    pub to: Option<String>,
    pub from: Option<String>,
}

/// An empty column and its default mean the same to vswitchd (ovs-vswitchd.conf.db(5)).
fn meaning<'a>(key: &str, value: Option<&'a str>) -> Option<&'a str> {
    match (key, value) {
        ("fail_mode", None) => Some("standalone"),
        ("datapath_type", None | Some("")) => Some("system"),
        ("bond_mode", None) => Some("active-backup"),
        ("lacp", None) => Some("off"),
        ("trunks" | "hwaddr", Some("")) => None,
        ("bond_updelay" | "bond_downdelay", None) => Some("0"),
        _ => value,
    }
}

fn same(key: &str, a: &Option<String>, b: &Option<String>) -> bool {
    meaning(key, a.as_deref()) == meaning(key, b.as_deref())
}

/// On what we made ourselves, every column is as wanted.
pub(crate) fn settle_made(columns: Vec<Column>) -> Vec<Change> {
    let differs = |c: Column| c.want.filter(|w| !same(c.key, &c.have, w)).map(|to| Change { key: c.key, to, from: c.have });
    columns.into_iter().filter_map(differs).collect()
}

/// On what was there before, only named columns are set, with a note of what they were; a column that is no longer named
/// gets its former value back. `keep` leaves the (perhaps empty) list in place: it says that the thing is adopted.
pub(crate) fn settle_adopted(ids: &Ids, columns: Vec<Column>, keep: bool) -> (Vec<Change>, IdSet) {
    let before: Vec<&str> = ids.get(SET).map(|s| s.split(',').filter(|k| !k.is_empty()).collect()).unwrap_or_default();
    let mut list: Vec<&str> = Vec::new();
    let mut changes = Vec::new();
    let mut set = IdSet::new();
    for c in columns {
        let noted = before.contains(&c.key);
        let note = format!("{WAS}{}", c.key);
        match c.want {
            Some(to) => {
                let differs = !same(c.key, &c.have, &to);
                if differs || noted {
                    list.push(c.key);
                }
                if differs && !noted {
                    set.insert(note, Some(c.have.clone().unwrap_or_default()));
                }
                if differs {
                    changes.push(Change { key: c.key, to, from: c.have });
                }
            }
            None if noted => {
                let was = ids.get(&note).cloned().filter(|s| !s.is_empty());
                set.insert(note, None);
                if c.have != was {
                    changes.push(Change { key: c.key, to: was, from: c.have });
                }
            }
            None => {}
        }
    }
    let text = list.join(",");
    let wanted = (keep || !text.is_empty()).then_some(text);
    if ids.get(SET) != wanted.as_ref() {
        set.insert(SET.to_owned(), wanted);
    }
    (changes, set)
}

/// Former values of the keys that a change of `external_ids` touches.
pub(crate) fn former(ids: &Ids, set: &IdSet) -> IdSet {
    set.keys().map(|k| (k.clone(), ids.get(k).cloned())).collect()
}

/// Takes every key of ours off.
pub(crate) fn unmark(ids: &Ids) -> IdSet {
    ids.keys().filter(|k| *k == MARK || *k == SET || k.starts_with(WAS)).map(|k| (k.clone(), None)).collect()
}

pub(crate) fn bridge_set(changes: &[Change], back: bool) -> BridgeSet {
    let mut s = BridgeSet::default();
    for c in changes {
        let v = if back { &c.from } else { &c.to }.clone();
        match c.key {
            "fail_mode" => s.fail_mode = Some(v),
            "mcast_snooping" => s.mcast_snooping = Some(v.as_deref() == Some("true")),
            "datapath_type" => s.datapath_type = Some(v.unwrap_or_default()),
            "hwaddr" => {
                s.other_config.insert("hwaddr".to_owned(), v);
            }
            _ => s.mtu_request = Some(v.and_then(|v| v.parse().ok())),
        }
    }
    s
}

pub(crate) fn port_set(changes: &[Change], back: bool) -> PortSet {
    let mut s = PortSet::default();
    for c in changes {
        let v = if back { &c.from } else { &c.to }.clone();
        match c.key {
            "trunks" => s.trunks = Some(trunks_of(v.as_deref().unwrap_or_default())),
            "tag" => s.tag = Some(v.and_then(|v| v.parse().ok()).and_then(|n: i64| Tag::new(n).ok())),
            "vlan_mode" => s.vlan_mode = Some(v),
            "bond_mode" => s.bond_mode = Some(v),
            "lacp" => s.lacp = Some(v),
            "bond_updelay" => s.bond_updelay = Some(v.and_then(|v| v.parse().ok()).unwrap_or(0)),
            _ => s.bond_downdelay = Some(v.and_then(|v| v.parse().ok()).unwrap_or(0)),
        }
    }
    s
}

/// Tags one by one: unlike the users' spelling it has room for 0.
pub(crate) fn trunks_text(t: &Trunks) -> Option<String> {
    (!t.is_empty()).then(|| t.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(","))
}

fn trunks_of(text: &str) -> Trunks {
    text.split(',').filter_map(|t| t.parse().ok()).filter_map(|n: i64| Tag::new(n).ok()).collect()
}

pub(crate) fn have_bridge(b: &OvsBridge, key: &str) -> Option<String> {
    match key {
        "fail_mode" => b.fail_mode.clone(),
        "mcast_snooping" => Some(b.mcast_snooping.to_string()),
        "datapath_type" => Some(b.datapath_type.clone()),
        "hwaddr" => b.other_config.get("hwaddr").cloned(),
        _ => mtu_request(b).map(|m| m.to_string()),
    }
}

/// Of the local port, for its Interface row has the column.
fn mtu_request(b: &OvsBridge) -> Option<u32> {
    b.port(&b.name).and_then(|p| p.interfaces.first()).and_then(|i| i.mtu_request).and_then(|m| u32::try_from(m).ok())
}

pub(crate) fn have_port(p: &OvsPort, key: &str) -> Option<String> {
    let number = |n: i64| (n != 0).then(|| n.to_string());
    match key {
        "trunks" => trunks_text(&p.trunk_set()),
        "tag" => p.tag.map(|t| t.to_string()),
        "vlan_mode" => p.vlan_mode.clone(),
        "bond_mode" => p.bond_mode.clone(),
        "lacp" => p.lacp.clone(),
        "bond_updelay" => number(p.bond_updelay),
        _ => number(p.bond_downdelay),
    }
}

/// A port as it is, so that deleting it can be taken back.
pub fn port_as_is(p: &OvsPort) -> Port {
    let delay = |n: i64| u32::try_from(n).ok().filter(|n| *n != 0);
    Port {
        name: p.name.clone(),
        interfaces: p
            .interfaces
            .iter()
            .map(|i| Interface {
                name: i.name.clone(),
                kind: i.kind.clone(),
                ofport_request: i.ofport_request.and_then(|n| u16::try_from(n).ok()),
                mtu_request: i.mtu_request.and_then(|n| u32::try_from(n).ok()),
                external_ids: i.external_ids.clone(),
            })
            .collect(),
        set: PortSet {
            tag: p.tag.map(|t| Tag::new(i64::from(t)).ok()),
            trunks: Some(p.trunk_set()).filter(|t| !t.is_empty()),
            vlan_mode: p.vlan_mode.clone().map(Some),
            bond_mode: p.bond_mode.clone().map(Some),
            lacp: p.lacp.clone().map(Some),
            bond_updelay: delay(p.bond_updelay),
            bond_downdelay: delay(p.bond_downdelay),
            external_ids: p.external_ids.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect(),
        },
    }
}

pub(crate) fn bridge_as_is(b: &OvsBridge, name: &model::BridgeName) -> Bridge {
    let map = |m: &Ids| m.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
    Bridge {
        name: name.clone(),
        set: BridgeSet {
            datapath_type: Some(b.datapath_type.clone()),
            fail_mode: b.fail_mode.clone().map(Some),
            mcast_snooping: Some(b.mcast_snooping),
            other_config: map(&b.other_config),
            external_ids: map(&b.external_ids),
            mtu_request: mtu_request(b).map(Some),
        },
    }
}
