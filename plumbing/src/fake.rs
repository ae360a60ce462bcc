//! A host in memory that behaves as the kernel and Open vSwitch do in what plans touch: names clash, absent things are
//! refused, links take their addresses and routes along, a transaction is all or nothing. With faults on demand, and a record of what was applied. For tests of
//! whoever uses `Host`; it proves nothing about the kernel.

#[cfg(test)]
mod tests;
mod world;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::observed::{Look, LookOvs, NetnsState, Observed, Ovs, OvsBridge, OvsInterface, OvsPort, Scope};
use model::{IfName, MacAddr, Owner};
use netlink::Netns;
use planner::{Ns, Plan, Step};
use tokio::sync::watch;

use crate::error::{ApplyError, HostError, StepError};
use crate::exec::{self, Done, Failed, Hands};
use crate::{Host, Marked, Way, What};
use world::World;

/// Clones share everything.
#[derive(Debug, Clone)]
pub struct FakeHost {
    world: Arc<Mutex<World>>,
    changes: Arc<watch::Sender<u64>>,
}

/// A namespace handle for calls on a fake host, which tells pods apart by this name only.
///
/// # Panics
/// Where /proc is not mounted.
pub fn netns(name: &str) -> Netns {
    let own = std::fs::File::open("/proc/thread-self/ns/net").expect("/proc is mounted");
    Netns::from_fd(own.into(), Some(name.into())).expect("it is one")
}

impl Default for FakeHost {
    fn default() -> Self {
        Self { world: Arc::default(), changes: Arc::new(watch::channel(0).0) }
    }
}

impl FakeHost {
    /// Without links and without Open vSwitch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a physical NIC of the host that is up, with MTU 1500.
    ///
    /// # Panics
    /// Where the name is none.
    pub fn with_nic(self, name: &str, mac: MacAddr) -> Self {
        let name = IfName::new(name).expect("a test's name");
        self.edit(|w| w.add_nic(name, mac));
        self
    }

    /// Open vSwitch without bridges, offering both datapaths.
    pub fn with_ovs(self) -> Self {
        let ovs = Ovs { version: "3.1.0".into(), datapath_types: vec!["netdev".into(), "system".into()], bridges: vec![] };
        self.edit(|w| w.ovs = Some(ovs));
        self
    }

    /// A bridge that was there before, with its local port and with these NICs as ports.
    ///
    /// # Panics
    /// Without `with_ovs`.
    pub fn with_bridge(self, name: &str, ports: &[&str]) -> Self {
        let port = |(i, p): (usize, &&str)| OvsPort {
            name: (*p).to_owned(),
            interfaces: vec![OvsInterface {
                name: (*p).to_owned(),
                kind: if i == 0 { "internal".into() } else { String::new() },
                ofport: Some(if i == 0 { 65534 } else { i64::try_from(i).unwrap_or(1) }),
                ..OvsInterface::default()
            }],
            ..OvsPort::default()
        };
        let ports = [&[name], ports].concat().iter().enumerate().map(port).collect();
        let bridge = OvsBridge { name: name.to_owned(), ports, ..OvsBridge::default() };
        self.edit(|w| w.ovs.as_mut().expect("with_ovs comes first").bridges.push(bridge));
        self
    }

    /// Changes the host behind everybody's back, as drift does.
    pub fn edit_host(&self, change: impl FnOnce(&mut NetnsState, &mut Option<Ovs>)) {
        self.edit(|w| change(&mut w.host, &mut w.ovs));
    }

    /// The same for a pod's namespace, by the name it was given to `netns`.
    pub fn edit_pod(&self, pod: &str, change: impl FnOnce(&mut NetnsState)) {
        self.edit(|w| change(w.pods.entry(pod.to_owned()).or_default()));
    }

    /// Step `k` of the next plan fails, once.
    pub fn fail_step(&self, k: usize) {
        self.lock().fail_step = Some(k);
    }

    /// Open vSwitch will not be able to use this interface, as when its device is missing.
    pub fn fail_interface(&self, name: &str, error: &str) {
        self.lock().bad_interfaces.insert(name.to_owned(), error.to_owned());
    }

    /// Open vSwitch stops answering, or answers again.
    pub fn set_ovs_down(&self, down: bool) {
        self.lock().ovs_down = down;
    }

    /// A host of the segment that is none of ours uses this address, or no longer does.
    pub fn set_stranger(&self, ip: IpAddr, mac: Option<MacAddr>) {
        match mac {
            Some(mac) => drop(self.lock().strangers.insert(ip, mac)),
            None => drop(self.lock().strangers.remove(&ip)),
        }
    }

    /// This gateway stops answering.
    pub fn silence(&self, gateway: IpAddr) {
        self.lock().silent.insert(gateway);
    }

    /// What was announced again, by pod and interface.
    pub fn announced_again(&self) -> Vec<(String, IfName, Vec<IpAddr>)> {
        self.lock().announced_again.clone()
    }

    /// Plans in the order in which they came, with the pod's name, those that failed too.
    pub fn applied(&self) -> Vec<(Option<String>, Plan)> {
        self.lock().applied.clone()
    }

    pub fn host(&self) -> NetnsState {
        self.lock().host.clone()
    }

    pub fn pod(&self, pod: &str) -> NetnsState {
        self.lock().pods.get(pod).cloned().unwrap_or_default()
    }

    pub fn ovs(&self) -> Option<Ovs> {
        self.lock().ovs.clone()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edit(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.lock());
        self.changes.send_modify(|n| *n += 1);
    }
}

fn key(pod: Option<&Netns>) -> Option<String> {
    pod.map(ToString::to_string)
}

fn down() -> ovsdb::Error {
    ovsdb::Error::NotConnected { reason: "switched off by a test".into() }
}

impl Host for FakeHost {
    async fn observe(&self, pod: Option<&Netns>, scope: &Scope) -> Result<Observed, HostError> {
        let world = self.lock();
        if scope.ovs != LookOvs::Nothing && world.ovs_down {
            return Err(HostError::Ovs { endpoint: "fake".into(), cause: down() });
        }
        let pod = key(pod).and_then(|k| world.pods.get(&k));
        Ok(Observed {
            host: look(&world.host, &scope.host),
            pod: pod.map(|p| look(p, &scope.pod)).unwrap_or_default(),
            ovs: world.ovs.clone().filter(|_| scope.ovs != LookOvs::Nothing).map(|o| only(o, &scope.ovs)),
        })
    }

    async fn apply(&self, pod: Option<&Netns>, plan: &Plan) -> Result<(), ApplyError> {
        let pod = key(pod);
        let fail_at = {
            let mut world = self.lock();
            world.applied.push((pod.clone(), plan.clone()));
            if let Some(pod) = &pod {
                world.pods.entry(pod.clone()).or_default();
            }
            world.fail_step.take()
        };
        let result = exec::run(&Session { world: self.world.clone(), pod }, plan, fail_at).await;
        if !plan.is_empty() {
            self.changes.send_modify(|n| *n += 1);
        }
        result
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn find_marked(&self, pod: Option<&Netns>) -> Result<Vec<Marked>, HostError> {
        let world = self.lock();
        let links = |ns, state: &NetnsState| {
            let marked = |l: &model::observed::Link| {
                let owner = Owner::from_alias(l.alias.as_deref()?)?;
                Some(Marked { owner, what: What::Link { ns, name: l.name.clone() } })
            };
            state.links.iter().filter_map(marked).collect::<Vec<_>>()
        };
        let mut out = Vec::new();
        for bridge in world.ovs.iter().flat_map(|o| &o.bridges) {
            for port in &bridge.ports {
                if let Some(owner) = crate::linux::owner(&port.external_ids) {
                    out.push(Marked { owner, what: What::Port { bridge: bridge.name.clone(), port: port.name.clone() } });
                }
            }
        }
        out.extend(links(Ns::Host, &world.host));
        if let Some(pod) = key(pod).and_then(|k| world.pods.get(&k)) {
            out.extend(links(Ns::Pod, pod));
        }
        Ok(out)
    }

    async fn announce_again(&self, pod: &Netns, dev: &IfName, ips: &[IpAddr]) -> Result<bool, HostError> {
        let mut world = self.lock();
        let key = pod.to_string();
        let has = |ip: &&IpAddr| world.pods.get(&key).is_some_and(|p| p.addrs_of(dev).any(|a| a.addr.ip() == **ip));
        let still: Vec<IpAddr> = ips.iter().filter(has).copied().collect();
        let any = !still.is_empty();
        if any {
            world.announced_again.push((key, dev.clone(), still));
        }
        Ok(any)
    }

    /// By the longest prefix of the main table.
    async fn route_get(&self, to: IpAddr) -> Result<Option<Way>, HostError> {
        let world = self.lock();
        let routes = world.host.routes.iter().filter(|r| r.table == model::addr::TABLE_MAIN && r.dst.contains(to));
        let best = routes.max_by_key(|r| (r.dst.prefix_len(), std::cmp::Reverse(r.metric.unwrap_or(0))));
        Ok(best.map(|r| Way { dev: r.dev.clone(), gw: r.gw, src: r.src }))
    }
}

fn look(state: &NetnsState, what: &Look) -> NetnsState {
    match what {
        Look::Nothing => NetnsState::default(),
        Look::All => state.clone(),
        Look::AllLinks => NetnsState { links: state.links.clone(), ..NetnsState::default() },
        Look::Routes => NetnsState { links: state.links.clone(), routes: state.routes.clone(), ..NetnsState::default() },
        Look::Links(names) => {
            let links = names.iter().filter_map(|n| state.link(n)).cloned().collect();
            NetnsState { links, ..NetnsState::default() }
        }
    }
}

fn only(mut ovs: Ovs, what: &LookOvs) -> Ovs {
    for b in &mut ovs.bridges {
        b.ports.retain(|p| what.takes_in(&p.name, &p.external_ids));
    }
    ovs
}

struct Session {
    world: Arc<Mutex<World>>,
    pod: Option<String>,
}

impl Hands for Session {
    async fn carry_out(&self, run: &[Step]) -> Result<Vec<Done>, Failed> {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        match run.first().is_some_and(Step::is_ovsdb) {
            true => self.transaction(&mut world, run),
            false => exec::in_batches(run, |batch| self.batch(&mut world, batch)),
        }
    }
}

impl Session {
    /// As the kernel does it: it goes on behind a step that it refused.
    fn batch(&self, world: &mut World, batch: &[Step]) -> Result<Vec<Done>, Failed> {
        let mut done = Vec::new();
        let mut failed: Option<(usize, StepError)> = None;
        for (at, step) in batch.iter().enumerate() {
            match world.step(self.pod.as_deref(), step) {
                Ok(d) => done.push(d),
                Err(cause) => {
                    done.push(Done::AlreadySo);
                    failed.get_or_insert((at, cause));
                }
            }
        }
        match failed {
            None => Ok(done),
            Some((at, cause)) => Err(Failed { at, cause, changed: changed(&done) }),
        }
    }

    /// All or nothing; what the switch cannot use is told after it.
    fn transaction(&self, world: &mut World, run: &[Step]) -> Result<Vec<Done>, Failed> {
        let before = (world.ovs.clone(), world.host.links.clone());
        let mut done = Vec::new();
        for (at, step) in run.iter().enumerate() {
            match world.step(self.pod.as_deref(), step) {
                Ok(d) => done.push(d),
                Err(cause) => {
                    (world.ovs, world.host.links) = before;
                    return Err(Failed { at, cause, changed: vec![false; run.len()] });
                }
            }
        }
        match run.iter().enumerate().find_map(|(at, s)| world.unusable(s).map(|cause| (at, cause))) {
            None => Ok(done),
            Some((at, cause)) => Err(Failed { at, cause, changed: changed(&done) }),
        }
    }
}

fn changed(done: &[Done]) -> Vec<bool> {
    done.iter().map(|d| *d == Done::Changed).collect()
}
