//! The plan of a bridge that is no longer wanted here: take back what is ours, or only our marks. Does not know bridges
//! that are wanted.

use model::desired::{BridgeRemoved, DeletionPolicy};
use model::observed::{Observed, OvsBridge, OvsPort};
use model::{BridgeName, Owner};

use super::bridge::{no_switch, restore_nics};
use super::ports::{self, Column};
use super::{MARK, SET, Verdict};
use crate::step::{BridgeSet, PortSet};
use crate::{Plan, Step};

const BRIDGE_COLUMNS: [&str; 5] = ["fail_mode", "mcast_snooping", "hwaddr", "datapath_type", "mtu_request"];
const PORT_COLUMNS: [&str; 5] = ["trunks", "bond_mode", "lacp", "bond_updelay", "bond_downdelay"];

pub(crate) fn plan(r: &BridgeRemoved, seen: &Observed) -> (Plan, Verdict) {
    let Some(ovs) = &seen.ovs else { return (Plan::default(), no_switch(&r.name).into()) };
    let there = ovs.bridge(r.name.as_str()).filter(|b| b.external_ids.contains_key(MARK));
    let Some(b) = there else { return (Plan::default(), Verdict::Removed) };
    if r.deletion_policy == DeletionPolicy::Orphan {
        return (unmark_all(r, b), Verdict::Orphaned);
    }
    let adopted = b.external_ids.contains_key(SET);
    // On a bridge that was there before, ports of others were there before as well; on ours they came because of it.
    let uses = |p: &&OvsPort| {
        p.name != b.name && !p.external_ids.contains_key(MARK) && (!adopted || p.external_ids.contains_key(Owner::OVS_KEY))
    };
    let ports: Vec<String> = b.ports.iter().filter(uses).map(|p| p.name.clone()).collect();
    if !ports.is_empty() {
        return (Plan::default(), Verdict::InUse { ports });
    }
    let mut plan = Plan::default();
    for p in b.ports.iter().filter(|p| p.external_ids.contains_key(MARK)) {
        plan.push(Step::DelPort { bridge: r.name.clone(), port: ports::port_as_is(p) });
    }
    if adopted {
        b.ports.iter().filter_map(|p| release(&r.name, p)).for_each(|s| plan.push(s));
        let columns = BRIDGE_COLUMNS.map(|key| Column { key, have: ports::have_bridge(b, key), want: None });
        let (changes, _) = ports::settle_adopted(&b.external_ids, columns.into(), false);
        let ids = ports::unmark(&b.external_ids);
        let was = BridgeSet { external_ids: ports::former(&b.external_ids, &ids), ..ports::bridge_set(&changes, true) };
        let set = BridgeSet { external_ids: ids, ..ports::bridge_set(&changes, false) };
        plan.push(Step::SetBridge { name: r.name.clone(), set, was });
    } else {
        plan.push(Step::DelBridge(ports::bridge_as_is(b, &r.name)));
    }
    b.ports.iter().flat_map(|p| restore_nics(p, seen, &[])).for_each(|s| plan.push(s));
    (plan, Verdict::Removing)
}

/// A port that was there before gets its columns back and loses our marks.
pub(crate) fn release(bridge: &BridgeName, p: &OvsPort) -> Option<Step> {
    if p.external_ids.contains_key(MARK) {
        return None;
    }
    let columns = PORT_COLUMNS.map(|key| Column { key, have: ports::have_port(p, key), want: None });
    let (changes, _) = ports::settle_adopted(&p.external_ids, columns.into(), false);
    let ids = ports::unmark(&p.external_ids);
    let was = PortSet { external_ids: ports::former(&p.external_ids, &ids), ..ports::port_set(&changes, true) };
    let set = PortSet { external_ids: ids, ..ports::port_set(&changes, false) };
    (set != PortSet::default()).then(|| Step::SetPort { bridge: bridge.clone(), name: p.name.clone(), set, was })
}

fn unmark_all(r: &BridgeRemoved, b: &OvsBridge) -> Plan {
    let mut plan = Plan::default();
    for p in &b.ports {
        let ids = ports::unmark(&p.external_ids);
        if !ids.is_empty() {
            let was = PortSet { external_ids: ports::former(&p.external_ids, &ids), ..PortSet::default() };
            let set = PortSet { external_ids: ids, ..PortSet::default() };
            plan.push(Step::SetPort { bridge: r.name.clone(), name: p.name.clone(), set, was });
        }
    }
    let ids = ports::unmark(&b.external_ids);
    let was = BridgeSet { external_ids: ports::former(&b.external_ids, &ids), ..BridgeSet::default() };
    plan.push(Step::SetBridge { name: r.name.clone(), set: BridgeSet { external_ids: ids, ..BridgeSet::default() }, was });
    plan
}
