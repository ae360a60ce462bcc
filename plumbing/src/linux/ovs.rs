//! The switch of a host: looks at the replica of its database, and changes it by guarded transactions. Done is what
//! ovs-vswitchd reports back through the same replica; nothing is polled.

mod transaction;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::observed::{LookOvs, Ovs as Seen, OvsBridge, OvsInterface, OvsPort};
use model::{Owner, RunBy};
use ovsdb::{Client, Config, Db, Endpoint, MonitorRequest, Replica};
use planner::Step;

use crate::error::{HostError, StepError};
use crate::exec::{Done, Failed};
use crate::{Marked, What};

/// ovs-vswitchd opens a port within milliseconds; on a busy host a second has been seen. Beyond this it hangs or is not running.
const OFPORT_WAIT: Duration = Duration::from_secs(10);

/// A restart of ovsdb-server takes less than a second, and the client tries again at most every five.
const SYNC_WAIT: Duration = Duration::from_secs(8);

/// How long it is believed whether the kernel has a datapath: for a family that is not there it starts modprobe, each time.
const DATAPATH_KNOWN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Ovs {
    endpoint: String,
    /// Of a unix socket.
    path: Option<PathBuf>,
    replica: Replica,
    /// It was there once since we began. An absent socket means "not installed" only until then.
    seen: AtomicBool,
    /// Whether the kernel has a datapath, and when that was asked.
    datapath: Mutex<Option<(Instant, bool)>>,
}

impl Ovs {
    pub async fn connect(endpoint: Endpoint) -> Result<Self, HostError> {
        let name = endpoint.to_string();
        let path = match &endpoint {
            Endpoint::Unix(path) => Some(path.clone()),
            _ => None,
        };
        let client = Client::connect(endpoint, Config::default());
        let replica = client.monitor(MonitorRequest::vswitch()).await;
        let replica = replica.map_err(|cause| HostError::Ovs { endpoint: name.clone(), cause })?;
        Ok(Self { endpoint: name, path, replica, seen: AtomicBool::new(false), datapath: Mutex::default() })
    }

    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// True once the replica is current; false where there is no Open vSwitch at all.
    async fn ready(&self) -> Result<bool, ovsdb::Error> {
        if !self.replica.status().synced {
            let absent = self.path.as_ref().is_some_and(|p| !p.exists());
            if absent && !self.seen.load(Ordering::Relaxed) {
                return Ok(false);
            }
            self.replica.synced(SYNC_WAIT).await?;
        }
        self.seen.store(true, Ordering::Relaxed);
        Ok(true)
    }

    async fn ready_to_look(&self) -> Result<bool, HostError> {
        self.ready().await.map_err(|cause| HostError::Ovs { endpoint: self.endpoint.clone(), cause })
    }

    pub async fn observe(&self, look: &LookOvs) -> Result<Option<Seen>, HostError> {
        let ready = self.ready_to_look().await?;
        Ok(ready.then(|| self.has_datapath()).map(|has| self.replica.with(|db| seen(db, look, has))))
    }

    /// ovs-vswitchd lists `system` whatever the kernel has (dpif-netlink is only compiled in or not), and a bridge of a datapath
    /// that the kernel lacks comes up without ports. The family is the one of linux/openvswitch.h, `OVS_DATAPATH_FAMILY`.
    fn has_datapath(&self) -> bool {
        let mut known = self.datapath.lock().unwrap_or_else(PoisonError::into_inner);
        match *known {
            Some((at, has)) if at.elapsed() < DATAPATH_KNOWN => has,
            _ => {
                let has = netlink::has_family("ovs_datapath").unwrap_or(true);
                *known = Some((Instant::now(), has));
                has
            }
        }
    }

    pub async fn find_marked(&self) -> Result<Vec<Marked>, HostError> {
        if !self.ready_to_look().await? {
            return Ok(Vec::new());
        }
        Ok(self.replica.with(|db| {
            let marked = |port: &ovsdb::Port| {
                let owner = owner(&port.external_ids)?;
                let bridge = db.bridge_of(port.uuid).map(|b| b.name.clone()).unwrap_or_default();
                Some(Marked { owner, what: What::Port { bridge, port: port.name.clone() } })
            };
            db.ports().iter().filter_map(|p| marked(p)).collect()
        }))
    }

    /// One transaction for the whole run: all of it or nothing, and then a wait for the switch.
    pub async fn carry_out(&self, run: &[Step]) -> Result<Vec<Done>, Failed> {
        let nothing = |at, cause| Failed { at, cause, changed: vec![false; run.len()] };
        match self.ready().await {
            Ok(true) => {}
            Ok(false) => return Err(nothing(0, StepError::NoOvs)),
            Err(e) => return Err(nothing(0, StepError::OvsDown(e))),
        }
        let planned = self.replica.with(|db| transaction::of(db, run)).map_err(|(at, cause)| nothing(at, cause))?;
        if planned.operations.is_empty() {
            return Ok(planned.done);
        }
        if let Err(e) = self.replica.client().transact(planned.operations).await {
            let operation = match &e {
                ovsdb::Error::Operation { index, .. } => *index,
                _ => 0,
            };
            let at = planned.step_of.get(operation).copied().unwrap_or(0);
            // Nothing of a refused transaction is done; of one whose answer was lost, perhaps all.
            let changed = planned.done.iter().map(|d| e.outcome_unknown() && *d == Done::Changed).collect();
            let cause = match &e {
                _ if e.is_timed_out() => StepError::OvsChanged,
                ovsdb::Error::NotConnected { .. } => StepError::OvsDown(e),
                _ if e.outcome_unknown() => StepError::OvsDown(e),
                _ => StepError::Ovs(e),
            };
            return Err(Failed { at, cause, changed });
        }
        match self.taken_up(&planned.interfaces).await {
            Ok(()) => Ok(planned.done),
            Err((at, cause)) => Err(Failed { at, cause, changed: planned.done.iter().map(|d| *d == Done::Changed).collect() }),
        }
    }

    /// Waits until the switch has opened every interface, or could not. Each comes with the step that made it.
    async fn taken_up(&self, interfaces: &[(String, usize)]) -> Result<(), (usize, StepError)> {
        let mut open = None;
        let verdict = |db: &Db| {
            open = None;
            for (name, at) in interfaces {
                let failed = |cause| Some(Err((*at, cause)));
                let Some(row) = db.interface(name) else {
                    return failed(StepError::InterfaceGone(name.clone()));
                };
                let unusable = row.ofport == Some(-1);
                match (&row.error, row.ofport) {
                    (Some(error), _) if !error.is_empty() => {
                        return failed(StepError::Interface { interface: name.clone(), error: error.clone() });
                    }
                    _ if unusable => {
                        return failed(StepError::Interface { interface: name.clone(), error: "ofport is -1".to_owned() });
                    }
                    (_, Some(ofport)) if ofport > 0 => {}
                    _ => open = Some((name.clone(), *at)),
                }
            }
            open.is_none().then_some(Ok(()))
        };
        match self.replica.wait_for(OFPORT_WAIT, verdict).await {
            Ok(verdict) => verdict,
            Err(_) => {
                let (name, at) = open.unwrap_or_else(|| interfaces.first().cloned().unwrap_or_default());
                Err((at, StepError::no_ofport(name, OFPORT_WAIT)))
            }
        }
    }
}

/// Our mark on a port.
pub(crate) fn owner(external_ids: &BTreeMap<String, String>) -> Option<Owner> {
    let attachment = external_ids.get(Owner::OVS_KEY)?.parse().ok()?;
    let by = match external_ids.get(Owner::OVS_BY_KEY).map(String::as_str) {
        Some("alone") => RunBy::Alone,
        Some("agent") | None => RunBy::Agent,
        Some(_) => return None,
    };
    Some(Owner { attachment, by })
}

fn seen(db: &Db, look: &LookOvs, has_datapath: bool) -> Seen {
    let root = db.open_vswitch();
    let usable = |datapath_type: &str| datapath_type != "system" || has_datapath;
    let mut bridges: Vec<_> = db.bridges().iter().map(|b| bridge(db, b, look)).collect();
    bridges.sort_by(|a, b| a.name.cmp(&b.name));
    Seen {
        version: root.and_then(|r| r.ovs_version.clone()).unwrap_or_default(),
        datapath_types: root.map(|r| r.datapath_types.iter().filter(|t| usable(t)).cloned().collect()).unwrap_or_default(),
        bridges,
    }
}

fn bridge(db: &Db, b: &ovsdb::Bridge, look: &LookOvs) -> OvsBridge {
    let ports = db.ports_of(b).filter(|p| look.takes_in(&p.name, &p.external_ids));
    let mut ports: Vec<_> = ports.map(|p| port(db, p)).collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    OvsBridge {
        name: b.name.clone(),
        ports,
        fail_mode: b.fail_mode.clone(),
        mcast_snooping: b.mcast_snooping_enable,
        datapath_type: b.datapath_type.clone(),
        other_config: b.other_config.clone(),
        external_ids: b.external_ids.clone(),
    }
}

fn port(db: &Db, p: &ovsdb::Port) -> OvsPort {
    let mut interfaces: Vec<_> = db.interfaces_of(p).map(|i| interface(i)).collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    // The schema keeps both between 0 and 4095.
    let small = |n: i64| u16::try_from(n).ok();
    OvsPort {
        name: p.name.clone(),
        interfaces,
        tag: p.tag.and_then(small),
        trunks: p.trunks.iter().copied().filter_map(small).collect(),
        vlan_mode: p.vlan_mode.clone(),
        bond_mode: p.bond_mode.clone(),
        lacp: p.lacp.clone(),
        bond_updelay: p.bond_updelay,
        bond_downdelay: p.bond_downdelay,
        other_config: p.other_config.clone(),
        external_ids: p.external_ids.clone(),
    }
}

fn interface(i: &ovsdb::Interface) -> OvsInterface {
    OvsInterface {
        name: i.name.clone(),
        kind: i.r#type.clone(),
        ofport: i.ofport,
        ofport_request: i.ofport_request,
        error: i.error.clone(),
        mac_in_use: i.mac_in_use.clone(),
        mtu: i.mtu,
        mtu_request: i.mtu_request,
        link_state: i.link_state.clone(),
        external_ids: i.external_ids.clone(),
        options: i.options.clone(),
    }
}
