//! Client for the Open vSwitch Database protocol (RFC 7047), as spoken by `ovsdb-server`.
//!
//! One task owns the socket; any number of [`Client`] clones call through it, and [`Replica`]s follow the tables they
//! monitor. The crate knows the protocol and the four tables of the `Open_vSwitch` database that say what is
//! switched where; it has no opinion on what should be in them.
//!
//! ```no_run
//! # async fn example() -> Result<(), ovsdb::Error> {
//! use ovsdb::{Client, Config, Condition, Endpoint, MonitorRequest, Mutation, Operation, Value, columns};
//!
//! let endpoint: Endpoint = "unix:/run/openvswitch/db.sock".parse()?;
//! let client = Client::connect(endpoint, Config::default());
//! let replica = client.monitor(MonitorRequest::vswitch()).await?;
//! replica.synced(std::time::Duration::from_secs(5)).await?;
//! client
//!     .transact(vec![
//!         Operation::insert("Interface", columns([("name", "p0".into()), ("type", "internal".into())])).named("i"),
//!         Operation::insert("Port", columns([("name", "p0".into()), ("interfaces", Value::named_uuid("i"))])).named("p"),
//!         Operation::mutate(
//!             "Bridge",
//!             vec![Condition::equal("name", "br0")],
//!             vec![Mutation::insert("ports", Value::named_uuid("p"))],
//!         ),
//!     ])
//!     .await?;
//! // The reply comes after the update: what this connection committed is already in the replica.
//! assert!(replica.with(|db| db.port("p0").is_some()));
//! # Ok(()) }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails, as it should"))]

pub mod client;
pub mod codec;
mod connection;
pub mod endpoint;
pub mod error;
pub mod monitor;
pub mod op;
pub mod rows;
pub mod schema;
#[cfg(feature = "ssl")]
pub mod ssl;
pub mod unixctl;
pub mod value;

pub use client::{Client, Config, Lock, State};
pub use endpoint::{Connector, Endpoint};
pub use error::{Error, Retry};
pub use monitor::{Db, MonitorRequest, Replica, Status, Table};
pub use op::{Condition, Function, Mutation, Mutator, OpResult, Operation, Until, columns};
pub use rows::{Bridge, Interface, OpenVSwitch, Port, RawRow, Row};
pub use schema::Schema;
#[cfg(feature = "ssl")]
pub use ssl::SslFiles;
pub use value::{Atom, Columns, Uuid, Value};
