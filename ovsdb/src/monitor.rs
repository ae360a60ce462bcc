//! A live copy of monitored tables. Follows `monitor_cond` and its `update2` notifications (ovsdb-server(7), 4.1.12 to
//! 4.1.14): each notification is one committed transaction and becomes visible as a whole. Knows no socket.
//!
//! `monitor_cond_since` is not used: a standalone database keeps no history and answers it with the whole content.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::client::{Client, State};
use crate::connection::Release;
use crate::error::Error;
use crate::op::{Condition, Mutation, OpResult, Operation};
use crate::rows::{Bridge, Interface, OpenVSwitch, Port, RawRow, Row};
use crate::schema::Schema;
use crate::value::{Columns, Uuid, Value, ValueError};

/// Which tables and columns to follow. What the server's schema lacks is left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MonitorRequest {
    tables: BTreeMap<String, TableRequest>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct TableRequest {
    columns: Vec<String>,
    condition: Vec<Condition>,
}

impl MonitorRequest {
    /// `Open_vSwitch`, `Bridge`, `Port` and `Interface` with the columns that have a field.
    pub fn vswitch() -> Self {
        MonitorRequest::default()
            .table("Open_vSwitch", OpenVSwitch::COLUMNS)
            .table("Bridge", Bridge::COLUMNS)
            .table("Port", Port::COLUMNS)
            .table("Interface", Interface::COLUMNS)
    }

    /// Follows (also) these columns of a table.
    #[must_use]
    pub fn table(mut self, table: &str, columns: &[&str]) -> Self {
        let known = &mut self.tables.entry(table.to_owned()).or_default().columns;
        for column in columns {
            if !known.iter().any(|known| known == column) {
                known.push((*column).to_owned());
            }
        }
        self
    }

    /// Follows only rows that meet one of the conditions of the table (which are alternatives here, unlike in operations).
    #[must_use]
    pub fn only(mut self, table: &str, alternatives: Vec<Condition>) -> Self {
        self.tables.entry(table.to_owned()).or_default().condition = alternatives;
        self
    }

    /// The third parameter of `monitor_cond`.
    pub(crate) fn encode(&self, schema: &Schema) -> serde_json::Value {
        let mut tables = serde_json::Map::new();
        for (table, request) in &self.tables {
            if !schema.tables.contains_key(table) {
                continue;
            }
            let columns: Vec<&String> = request.columns.iter().filter(|column| schema.has(table, column)).collect();
            let mut body = serde_json::json!({ "columns": columns });
            if !request.condition.is_empty() {
                body["where"] = serde_json::json!(request.condition);
            }
            tables.insert(table.clone(), serde_json::Value::Array(vec![body]));
        }
        tables.into()
    }
}

/// Rows of one table.
#[derive(Debug, Clone)]
pub struct Table<R> {
    rows: HashMap<Uuid, Arc<R>>,
    by_name: HashMap<Arc<str>, Uuid>,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Table { rows: HashMap::new(), by_name: HashMap::new() }
    }
}

impl<R: Row> Table<R> {
    pub fn get(&self, uuid: Uuid) -> Option<&Arc<R>> {
        self.rows.get(&uuid)
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<R>> {
        self.rows.get(self.by_name.get(name)?)
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<R>> {
        self.rows.values()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether all changes fit, so that [`Table::apply`] cannot stop half way.
    fn check(&self, changes: &RowChanges) -> Result<(), UpdateError> {
        for (uuid, change) in changes {
            let (columns, must_exist) = match change {
                RowChange::Initial(columns) | RowChange::Insert(columns) => (columns, false),
                RowChange::Modify(columns) => (columns, true),
                RowChange::Delete(_) => continue,
            };
            if must_exist && !self.rows.contains_key(uuid) {
                return Err(UpdateError::UnknownRow { uuid: *uuid });
            }
            for (column, value) in columns {
                R::check(column, value).map_err(|source| UpdateError::Value { column: column.clone(), source })?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, changes: RowChanges, is_composite: impl Fn(&str) -> bool) -> Result<(), UpdateError> {
        // Deletions first: a name may pass from a deleted row to a new one within a transaction.
        let (deletions, changes): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|(_, change)| matches!(change, RowChange::Delete(_)));
        for (uuid, _) in deletions {
            if let Some(name) = self.rows.remove(&uuid).as_deref().and_then(R::name) {
                self.by_name.remove(name);
            }
        }
        for (uuid, change) in changes {
            let failed = |column: &str, source| UpdateError::Value { column: column.to_owned(), source };
            match change {
                RowChange::Delete(_) => {}
                RowChange::Initial(columns) | RowChange::Insert(columns) => {
                    let mut row = R::with_defaults(uuid);
                    for (column, value) in columns {
                        row.set(&column, value).map_err(|source| failed(&column, source))?;
                    }
                    if let Some(name) = row.name() {
                        self.by_name.insert(name.into(), uuid);
                    }
                    self.rows.insert(uuid, Arc::new(row));
                }
                RowChange::Modify(columns) => {
                    let row = self.rows.get_mut(&uuid).ok_or(UpdateError::UnknownRow { uuid })?;
                    // Names are immutable in the schema, so the index stands. A row that a snapshot holds is copied.
                    let row = Arc::make_mut(row);
                    for (column, value) in columns {
                        let done = if is_composite(&column) { row.apply_diff(&column, value) } else { row.set(&column, value) };
                        done.map_err(|source| failed(&column, source))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The monitored tables at one moment. A clone shares all tables with the original until one of them changes.
#[derive(Debug, Clone, Default)]
pub struct Db {
    schema: Arc<Schema>,
    open_vswitch: Arc<Table<OpenVSwitch>>,
    bridges: Arc<Table<Bridge>>,
    ports: Arc<Table<Port>>,
    interfaces: Arc<Table<Interface>>,
    others: BTreeMap<String, Arc<Table<RawRow>>>,
    /// Interface to port, since a bond's members cannot be found by name.
    port_of: Arc<HashMap<Uuid, Uuid>>,
}

impl Db {
    /// The one row of table `Open_vSwitch`.
    pub fn open_vswitch(&self) -> Option<&Arc<OpenVSwitch>> {
        self.open_vswitch.iter().next()
    }

    pub fn bridge(&self, name: &str) -> Option<&Arc<Bridge>> {
        self.bridges.by_name(name)
    }

    pub fn port(&self, name: &str) -> Option<&Arc<Port>> {
        self.ports.by_name(name)
    }

    pub fn interface(&self, name: &str) -> Option<&Arc<Interface>> {
        self.interfaces.by_name(name)
    }

    pub fn bridges(&self) -> &Table<Bridge> {
        &self.bridges
    }

    pub fn ports(&self) -> &Table<Port> {
        &self.ports
    }

    pub fn interfaces(&self) -> &Table<Interface> {
        &self.interfaces
    }

    /// A monitored table that has no struct.
    pub fn other(&self, table: &str) -> Option<&Table<RawRow>> {
        self.others.get(table).map(Arc::as_ref)
    }

    /// Ports of a bridge, in no order.
    pub fn ports_of<'a>(&'a self, bridge: &'a Bridge) -> impl Iterator<Item = &'a Arc<Port>> {
        bridge.ports.iter().filter_map(|uuid| self.ports.get(*uuid))
    }

    /// Interfaces of a port, in no order.
    pub fn interfaces_of<'a>(&'a self, port: &'a Port) -> impl Iterator<Item = &'a Arc<Interface>> {
        port.interfaces.iter().filter_map(|uuid| self.interfaces.get(*uuid))
    }

    /// The bridge that a port is in.
    pub fn bridge_of(&self, port: Uuid) -> Option<&Arc<Bridge>> {
        self.bridges.iter().find(|bridge| bridge.ports.contains(&port))
    }

    /// The port that an interface belongs to.
    pub fn port_of(&self, interface: Uuid) -> Option<&Arc<Port>> {
        self.ports.get(*self.port_of.get(&interface)?)
    }

    /// Tables and columns that the server has.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// One transaction, or the whole initial content; nothing of it when it does not fit.
    fn apply(&mut self, updates: TableUpdates) -> Result<(), UpdateError> {
        for (table, changes) in &updates {
            match table.as_str() {
                "Open_vSwitch" => self.open_vswitch.check(changes),
                "Bridge" => self.bridges.check(changes),
                "Port" => self.ports.check(changes),
                "Interface" => self.interfaces.check(changes),
                name => match self.others.get(name) {
                    Some(table) => table.check(changes),
                    None => Table::<RawRow>::default().check(changes),
                },
            }?;
        }
        for (table, changes) in updates {
            let schema = Arc::clone(&self.schema);
            let is_composite = |column: &str| schema.column(&table, column).is_some_and(|column| column.is_composite());
            match table.as_str() {
                "Open_vSwitch" => Arc::make_mut(&mut self.open_vswitch).apply(changes, is_composite),
                "Bridge" => Arc::make_mut(&mut self.bridges).apply(changes, is_composite),
                "Port" => self.apply_ports(changes, is_composite),
                "Interface" => Arc::make_mut(&mut self.interfaces).apply(changes, is_composite),
                name => Arc::make_mut(self.others.entry(name.to_owned()).or_default()).apply(changes, is_composite),
            }?;
        }
        Ok(())
    }

    fn apply_ports(&mut self, changes: RowChanges, is_composite: impl Fn(&str) -> bool) -> Result<(), UpdateError> {
        let touched: Vec<Uuid> = changes
            .iter()
            .filter(|(_, change)| !matches!(change, RowChange::Modify(columns) if !columns.contains_key("interfaces")))
            .map(|(uuid, _)| *uuid)
            .collect();
        let ports = Arc::make_mut(&mut self.ports);
        if touched.is_empty() {
            return ports.apply(changes, is_composite);
        }
        let port_of = Arc::make_mut(&mut self.port_of);
        for port in touched.iter().filter_map(|uuid| ports.get(*uuid)) {
            for interface in &port.interfaces {
                port_of.remove(interface);
            }
        }
        ports.apply(changes, is_composite)?;
        for port in touched.iter().filter_map(|uuid| ports.get(*uuid)) {
            port_of.extend(port.interfaces.iter().map(|interface| (*interface, port.uuid)));
        }
        Ok(())
    }
}

/// Where a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Grows with every change of content or of `synced`.
    pub version: u64,
    /// The content follows the server. When not, it is the last that was known.
    pub synced: bool,
}

/// Handle of a live copy; clones share it. It keeps the client's connection alive.
#[derive(Debug, Clone)]
pub struct Replica {
    pub(crate) shared: Arc<Shared>,
    pub(crate) client: Client,
}

impl Replica {
    /// The content as it is now, to keep as long as you like; constant time. While a snapshot lives, the next update
    /// copies the maps (not the rows) of the tables it changes: prefer [`Replica::with`] for a look in passing.
    pub fn snapshot(&self) -> Arc<Db> {
        Arc::clone(&self.shared.read())
    }

    /// Reads in place. Updates wait for `f`: keep it short, and do not call the replica from within.
    pub fn with<T>(&self, f: impl FnOnce(&Db) -> T) -> T {
        f(&self.shared.read())
    }

    pub fn status(&self) -> Status {
        *self.shared.status.borrow()
    }

    /// Wakes on every change, with the latest value only: changes that come together wake once.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until the content follows the server. Without a connection the error names why there is none.
    pub async fn synced(&self, timeout: Duration) -> Result<(), Error> {
        let done = self.wait_until(timeout, "the OVSDB replica was not synchronised", |_| Some(())).await;
        done.map_err(|error| match self.client.state() {
            State::Disconnected { reason } => Error::NotConnected { reason },
            State::Connected { .. } => error,
        })
    }

    /// Waits until `f` finds what it looks for. It is called once at first and then after every change, while the
    /// content follows the server.
    pub async fn wait_for<T>(&self, timeout: Duration, f: impl FnMut(&Db) -> Option<T>) -> Result<T, Error> {
        self.wait_until(timeout, "what was waited for did not come about in OVSDB", f).await
    }

    async fn wait_until<T>(
        &self,
        timeout: Duration,
        what: &'static str,
        mut f: impl FnMut(&Db) -> Option<T>,
    ) -> Result<T, Error> {
        let mut status = self.subscribe();
        let found = tokio::time::timeout(timeout, async {
            loop {
                if status.borrow_and_update().synced
                    && let Some(found) = self.with(&mut f)
                {
                    return found;
                }
                // The sender lives in `self.shared`, so this ends only by a change.
                let _ = status.changed().await;
            }
        });
        found.await.map_err(|_| Error::Timeout { what, waited_ms: millis(timeout) })
    }

    /// Commits, and waits until ovs-vswitchd says that it has acted on it: increments `next_cfg` within the transaction
    /// and waits for `cur_cfg` to reach it (ovs-vswitchd.conf.db(5), "Configuration"). The replica must follow table
    /// `Open_vSwitch`. Results are those of `operations`.
    ///
    /// That a device could not be opened is no failure of the transaction: see `ofport` and `error` of the interface.
    pub async fn transact_and_wait(&self, mut operations: Vec<Operation>, timeout: Duration) -> Result<Vec<OpResult>, Error> {
        let count = operations.len();
        operations.push(Operation::mutate("Open_vSwitch", Vec::new(), vec![Mutation::add("next_cfg", 1)]));
        operations.push(Operation::select_columns("Open_vSwitch", Vec::new(), &["next_cfg"]));
        let mut results = self.client.transact(operations).await?;
        let row = results.pop().and_then(|result| result.rows().and_then(|rows| rows.first().cloned()));
        let next_cfg =
            row.as_ref().and_then(|row| row.get("next_cfg")).and_then(Value::as_atom).and_then(|atom| atom.as_integer());
        results.truncate(count);
        let next_cfg = next_cfg.ok_or(Error::NoRootRow)?;
        let applied = |db: &Db| db.open_vswitch().filter(|row| row.cur_cfg >= next_cfg).map(drop);
        self.wait_until(timeout, "", applied).await.map_err(|_| Error::NotApplied { next_cfg, waited_ms: millis(timeout) })?;
        Ok(results)
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// What the connection writes and the handles read.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    db: RwLock<Arc<Db>>,
    status: watch::Sender<Status>,
    _release: Release,
}

impl Shared {
    pub(crate) fn new(release: Release) -> Self {
        Shared { _release: release, ..Shared::default() }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Arc<Db>> {
        // A poisoned lock still holds a whole database: `Db::apply` checks before it changes anything.
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces everything by the reply of `monitor_cond`.
    pub(crate) fn reset(&self, schema: &Arc<Schema>, reply: &RawValue) -> Result<(), UpdateError> {
        let updates: TableUpdates = serde_json::from_str(reply.get()).map_err(UpdateError::Parse)?;
        let mut db = Db { schema: Arc::clone(schema), ..Db::default() };
        db.apply(updates)?;
        *self.db.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(db);
        self.set_synced(true);
        Ok(())
    }

    /// Applies an `update2` notification.
    pub(crate) fn update(&self, updates: TableUpdates) -> Result<(), UpdateError> {
        {
            let mut guard = self.db.write().unwrap_or_else(PoisonError::into_inner);
            // Copies a few pointers when a snapshot is out, nothing else.
            Arc::make_mut(&mut guard).apply(updates)?;
        }
        self.status.send_modify(|status| status.version += 1);
        Ok(())
    }

    pub(crate) fn set_synced(&self, synced: bool) {
        self.status.send_if_modified(|status| {
            let changed = synced || status.synced;
            if changed {
                *status = Status { version: status.version + 1, synced };
            }
            changed
        });
    }
}

/// Why an update cannot be applied. The connection answers each by a fresh start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateError {
    #[error("malformed update: {0}")]
    Parse(#[source] serde_json::Error),
    #[error("update of column {column}: {source}")]
    Value { column: String, source: ValueError },
    #[error("update of row {uuid}, which was never announced")]
    UnknownRow { uuid: Uuid },
}

/// `<table-updates2>`.
pub(crate) type TableUpdates = HashMap<String, RowChanges>;
type RowChanges = HashMap<Uuid, RowChange>;

/// `<row-update2>`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RowChange {
    Initial(Columns),
    Insert(Columns),
    Modify(Columns),
    /// `null` in practice, a row in the specification.
    Delete(IgnoredAny),
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
