//! From steps to the operations of one transaction. Pure: takes the replica as it stands and says what to send. What it
//! relied on goes along as `wait` operations, so that the server refuses the whole if somebody changed it meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ovsdb::{Columns, Condition, Db, Mutation, Operation, Uuid, Value, columns};
use planner::Step;
use planner::step::{Bridge, BridgeSet, Interface, Port, PortSet};

use crate::error::StepError;
use crate::exec::Done;

#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub operations: Vec<Operation>,
    /// The step that each operation belongs to.
    pub step_of: Vec<usize>,
    /// What becomes of each step if the transaction is committed.
    pub done: Vec<Done>,
    /// Interfaces that the switch has to take up, with their steps.
    pub interfaces: Vec<(String, usize)>,
}

/// Err: the step that cannot be done, and why.
pub(super) fn of(db: &Db, steps: &[Step]) -> Result<Transaction, (usize, StepError)> {
    let mut build = Build {
        db,
        out: Transaction::default(),
        made: Made::default(),
        deleted: Deleted::default(),
        guarded: BTreeSet::new(),
        told: false,
        at: 0,
    };
    for (at, step) in steps.iter().enumerate() {
        build.at = at;
        let done = build.step(step).map_err(|cause| (at, cause))?;
        build.out.done.push(done);
    }
    if build.told {
        build.push(Operation::mutate("Open_vSwitch", vec![], vec![Mutation::add("next_cfg", 1)]));
    }
    Ok(build.out)
}

struct Build<'a> {
    db: &'a Db,
    out: Transaction,
    /// What this transaction makes and deletes, which the replica does not show.
    made: Made,
    deleted: Deleted,
    /// Bridges whose identity is guarded already.
    guarded: BTreeSet<String>,
    /// ovs-vswitchd has to be told by `next_cfg`, as `ovs-vsctl` tells it of everything: of a change of `trunks` or `vlan_mode`
    /// alone it takes no notice (vswitchd/bridge.c leaves them out of what alerts it).
    told: bool,
    at: usize,
}

#[derive(Default)]
struct Made {
    bridges: BTreeSet<String>,
    /// With the names by which the transaction's other operations call their rows.
    ports: BTreeMap<String, String>,
}

#[derive(Default)]
struct Deleted {
    bridges: BTreeSet<String>,
    ports: BTreeSet<String>,
}

impl Build<'_> {
    fn bridge(&self, name: &str) -> Option<&Arc<ovsdb::Bridge>> {
        self.db.bridge(name).filter(|_| !self.deleted.bridges.contains(name))
    }

    fn port(&self, name: &str) -> Option<&Arc<ovsdb::Port>> {
        self.db.port(name).filter(|_| !self.deleted.ports.contains(name))
    }

    fn push(&mut self, operation: Operation) {
        self.out.operations.push(operation);
        self.out.step_of.push(self.at);
    }

    fn step(&mut self, step: &Step) -> Result<Done, StepError> {
        match step {
            Step::AddBridge(b) => self.add_bridge(b),
            Step::DelBridge(b) => self.del_bridge(b),
            Step::SetBridge { name, set, .. } => self.set_bridge(name.as_str(), set),
            Step::AddPort { bridge, port } => self.add_port(bridge.as_str(), port),
            Step::DelPort { bridge, port } => self.del_port(bridge.as_str(), port),
            Step::SetPort { name, set, .. } => self.set_port(name, set),
            _ => unreachable!("`parts` keeps OVSDB apart"),
        }
    }

    /// The bridge is there, and is still the one that we looked at when the transaction runs.
    fn need_bridge(&mut self, name: &str) -> Result<(), StepError> {
        if self.made.bridges.contains(name) || self.guarded.contains(name) {
            return Ok(());
        }
        let bridge = self.bridge(name).ok_or_else(|| StepError::NoBridge(name.to_owned()))?;
        let row = columns([("_uuid", bridge.uuid.into())]);
        self.push(Operation::expect("Bridge", vec![Condition::equal("name", name)], &["_uuid"], vec![row]));
        self.guarded.insert(name.to_owned());
        Ok(())
    }

    fn add_bridge(&mut self, b: &Bridge) -> Result<Done, StepError> {
        let name = b.name.as_str();
        if self.bridge(name).is_some() || self.made.bridges.contains(name) {
            return Err(StepError::BridgeExists(name.to_owned()));
        }
        self.port_is_free(name, &[name])?;
        let at = self.at;
        let (interface, port, bridge) = (format!("bi{at}"), format!("bp{at}"), format!("b{at}"));
        let mut row = columns([("name", name.into()), ("type", "internal".into())]);
        row.extend(b.set.mtu_request.flatten().map(|m| ("mtu_request".to_owned(), m.into())));
        self.push(Operation::insert("Interface", row).named(&interface));
        let row = columns([("name", name.into()), ("interfaces", Value::named_uuid(&interface))]);
        self.push(Operation::insert("Port", row).named(&port));
        let mut row = bridge_columns(&b.set);
        row.extend(columns([("name", name.into()), ("ports", Value::named_uuid(&port))]));
        for (column, map) in [("other_config", &b.set.other_config), ("external_ids", &b.set.external_ids)] {
            row.insert(column.to_owned(), map_of(map));
        }
        self.push(Operation::insert("Bridge", row).named(&bridge));
        self.push(Operation::mutate("Open_vSwitch", vec![], vec![Mutation::insert("bridges", Value::named_uuid(&bridge))]));
        self.made.bridges.insert(name.to_owned());
        self.out.interfaces.push((name.to_owned(), at));
        Ok(Done::Changed)
    }

    fn del_bridge(&mut self, b: &Bridge) -> Result<Done, StepError> {
        let Some(bridge) = self.bridge(b.name.as_str()) else { return Ok(Done::AlreadySo) };
        // Its ports and their interfaces go with it: they are no roots, and nothing else refers to them.
        let (uuid, ports) = (bridge.uuid, self.db.ports_of(bridge).map(|p| p.name.clone()).collect::<Vec<_>>());
        self.push(Operation::mutate("Open_vSwitch", vec![], vec![Mutation::delete("bridges", uuid)]));
        self.deleted.ports.extend(ports);
        self.deleted.bridges.insert(b.name.to_string());
        Ok(Done::Changed)
    }

    fn set_bridge(&mut self, name: &str, set: &BridgeSet) -> Result<Done, StepError> {
        self.need_bridge(name)?;
        let before = self.out.operations.len();
        let this = || vec![Condition::equal("name", name)];
        self.update("Bridge", this(), bridge_columns(set));
        self.set_map("Bridge", this(), "other_config", &set.other_config);
        self.set_map("Bridge", this(), "external_ids", &set.external_ids);
        if let Some(mtu) = set.mtu_request {
            self.update("Interface", this(), columns([("mtu_request", mtu.into())]));
        }
        Ok(if self.out.operations.len() > before { Done::Changed } else { Done::AlreadySo })
    }

    fn add_port(&mut self, bridge: &str, port: &Port) -> Result<Done, StepError> {
        self.need_bridge(bridge)?;
        let interfaces: Vec<&str> = port.interfaces.iter().map(|i| i.name.as_str()).collect();
        self.port_is_free(&port.name, &interfaces)?;
        let at = self.at;
        let mut members = Vec::new();
        for (i, interface) in port.interfaces.iter().enumerate() {
            let id = format!("i{at}_{i}");
            self.push(Operation::insert("Interface", interface_columns(interface)).named(&id));
            members.push(ovsdb::Atom::NamedUuid(id));
            self.out.interfaces.push((interface.name.clone(), at));
        }
        let mut row = port_columns(&port.set);
        row.extend(columns([("name", port.name.as_str().into()), ("interfaces", Value::set(members))]));
        row.insert("external_ids".to_owned(), map_of(&port.set.external_ids));
        let id = format!("p{at}");
        self.push(Operation::insert("Port", row).named(&id));
        self.made.ports.insert(port.name.clone(), id.clone());
        // Not the set written anew: others add and remove ports at the same time.
        self.push(Operation::mutate(
            "Bridge",
            vec![Condition::equal("name", bridge)],
            vec![Mutation::insert("ports", Value::named_uuid(&id))],
        ));
        Ok(Done::Changed)
    }

    /// A better word than the server's for what it would refuse by its indexes.
    fn port_is_free(&self, port: &str, interfaces: &[&str]) -> Result<(), StepError> {
        let bridge_of = |uuid: Uuid| self.db.bridge_of(uuid).map(|b| b.name.clone()).unwrap_or_default();
        if self.made.ports.contains_key(port) {
            return Err(StepError::PortExists { port: port.to_owned(), bridge: "(made by the same plan)".to_owned() });
        }
        if let Some(row) = self.port(port) {
            return Err(StepError::PortExists { port: port.to_owned(), bridge: bridge_of(row.uuid) });
        }
        for interface in interfaces {
            let Some(row) = self.db.interface(interface) else { continue };
            let holder = self.db.port_of(row.uuid);
            if holder.is_some_and(|p| self.deleted.ports.contains(&p.name)) {
                continue;
            }
            return Err(StepError::InterfaceTaken {
                interface: (*interface).to_owned(),
                port: holder.map(|p| p.name.clone()).unwrap_or_default(),
                bridge: holder.map(|p| bridge_of(p.uuid)).unwrap_or_default(),
            });
        }
        Ok(())
    }

    /// By name and mark, wherever it is: somebody may have moved it to another bridge, perhaps just now. So the server looks
    /// for the bridge that holds it.
    fn del_port(&mut self, bridge: &str, port: &Port) -> Result<Done, StepError> {
        if let Some(id) = self.made.ports.remove(&port.name) {
            let gone = Mutation::delete("ports", Value::named_uuid(&id));
            self.push(Operation::mutate("Bridge", vec![Condition::equal("name", bridge)], vec![gone]));
            self.out.interfaces.retain(|(name, _)| port.interfaces.iter().all(|i| &i.name != name));
            return Ok(Done::Changed);
        }
        let Some(row) = self.port(&port.name) else { return Ok(Done::AlreadySo) };
        let mut marks = port.set.external_ids.iter().filter(|(k, _)| k.starts_with("mooring-"));
        if !marks.all(|(k, v)| row.external_ids.get(k) == v.as_ref()) {
            tracing::warn!(port = port.name, bridge, "a port of that name has another mark and is left alone");
            return Ok(Done::AlreadySo);
        }
        let uuid = row.uuid;
        self.push(Operation::mutate("Bridge", vec![Condition::includes("ports", uuid)], vec![Mutation::delete("ports", uuid)]));
        self.deleted.ports.insert(port.name.clone());
        Ok(Done::Changed)
    }

    fn set_port(&mut self, name: &str, set: &PortSet) -> Result<Done, StepError> {
        let row = self.port(name).map(|row| row.uuid);
        let this = || match row {
            Some(uuid) => vec![Condition::uuid(uuid)],
            None => vec![Condition::equal("name", name)],
        };
        match (row, self.made.ports.contains_key(name)) {
            (_, true) => {}
            (Some(_), false) => self.push(Operation::expect_some("Port", this())),
            (None, false) => return Err(StepError::NoPort(name.to_owned())),
        }
        let before = self.out.operations.len();
        self.update("Port", this(), port_columns(set));
        self.told |= self.out.operations.len() > before;
        self.set_map("Port", this(), "external_ids", &set.external_ids);
        Ok(if self.out.operations.len() > before { Done::Changed } else { Done::AlreadySo })
    }

    fn update(&mut self, table: &str, this: Vec<Condition>, row: Columns) {
        if !row.is_empty() {
            self.push(Operation::update(table, this, row));
        }
    }

    /// Key by key, for the other keys are not ours.
    fn set_map(&mut self, table: &str, this: Vec<Condition>, column: &str, map: &BTreeMap<String, Option<String>>) {
        if map.is_empty() {
            return;
        }
        let mut mutations = vec![Mutation::delete_keys(column, map.keys().map(String::as_str))];
        let set: Vec<_> = map.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_deref()?))).collect();
        if !set.is_empty() {
            mutations.push(Mutation::insert(column, Value::map(set)));
        }
        self.push(Operation::mutate(table, this, mutations));
    }
}

fn map_of(map: &BTreeMap<String, Option<String>>) -> Value {
    Value::map(map.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_deref()?))))
}

/// Without the maps, and without `mtu_request`, which is in another table.
fn bridge_columns(set: &BridgeSet) -> Columns {
    let mut row = Columns::new();
    let mut put = |column: &str, value: Option<Value>| row.extend(value.map(|v| (column.to_owned(), v)));
    put("datapath_type", set.datapath_type.as_deref().map(Value::from));
    put("fail_mode", set.fail_mode.clone().map(Value::from));
    put("mcast_snooping_enable", set.mcast_snooping.map(Value::from));
    row
}

/// Without `external_ids`.
fn port_columns(set: &PortSet) -> Columns {
    let mut row = Columns::new();
    let mut put = |column: &str, value: Option<Value>| row.extend(value.map(|v| (column.to_owned(), v)));
    put("tag", set.tag.map(|t| t.map(|t| t.get()).into()));
    put("trunks", set.trunks.as_ref().map(|t| Value::set(t.iter().map(|t| i64::from(t.get())))));
    put("vlan_mode", set.vlan_mode.clone().map(Value::from));
    put("bond_mode", set.bond_mode.clone().map(Value::from));
    put("lacp", set.lacp.clone().map(Value::from));
    put("bond_updelay", set.bond_updelay.map(Value::from));
    put("bond_downdelay", set.bond_downdelay.map(Value::from));
    row
}

fn interface_columns(i: &Interface) -> Columns {
    let mut row = columns([("name", i.name.as_str().into()), ("type", i.kind.as_str().into())]);
    row.extend(i.ofport_request.map(|n| ("ofport_request".to_owned(), n.into())));
    row.extend(i.mtu_request.map(|n| ("mtu_request".to_owned(), n.into())));
    row.insert("external_ids".to_owned(), Value::map(i.external_ids.iter().map(|(k, v)| (k.as_str(), v.as_str()))));
    row
}
