//! What a CNI call does: which plugin it is for, and the agent that all of them share. The work of each kind of plugin is in
//! the files of `attach/`; here are the call's entry, its checks, and what goes for all.
//!
//! Rules: nothing is taken from a pool and nothing stays on the host after a failed ADD; DEL needs neither API nor Pod;
//! what cannot be given back at once stays in the journal and is tried again behind the reply.

pub mod addresses;
mod announce;
mod backoff;
pub mod coordinator;
pub mod foreign;
mod gc;
pub mod meta;
pub mod nic;
pub mod pools;
mod probe;
mod ready;
pub mod sighting;
mod take;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cni::wire::Call;
use cni::{AddResult, Error, Request, Verb};
use ipam::NicOfPod;
use kube::Client;
use model::{IfName, PodRef};
use plumbing::{Host, Netns};
use runtime::{Backoff, Shutdown};
use serde_json::{Map, Value};

use crate::caches::{Caches, Pod};
use crate::cni_server::{Abort, Handler, NoRunner, Runner};
use crate::endpoints::Endpoints;
use crate::events::{Events, Reason};
use crate::journal::{self, Entry, Journal, JournalError, Key, NetnsRef, Role, State, Work};
use crate::leases::Leases;
use crate::spool::Spool;

/// Who the agent is and where its files are.
#[derive(Debug, Clone)]
pub struct Me {
    pub node: String,
    pub agent_id: String,
    /// Where a bare `multusName` of a pool is looked for.
    pub namespace: String,
    pub cni_conf_dir: PathBuf,
    /// Cluster network where the meta plugin's configuration names none.
    pub primary: Option<String>,
    /// Where plugins leave their DELs while no agent runs.
    pub spool: PathBuf,
    /// Where runtimes bind the network namespaces of sandboxes.
    pub netns_dir: PathBuf,
    /// The database of Open vSwitch that the host is connected to, as the flag names it.
    pub ovsdb: Option<String>,
}

/// Everything a call needs, warm.
pub struct Agent<H> {
    pub me: Me,
    pub host: Arc<H>,
    pub client: Client,
    pub caches: Caches,
    pub journal: Arc<Journal>,
    pub leases: Leases,
    pub endpoints: Arc<Endpoints>,
    pub events: Arc<Events>,
    pub spool: Spool,
    /// Pods that found all of their pools empty.
    empty: backoff::EmptyPools,
    coordinating: tokio::sync::Mutex<()>,
    announcing: announce::Announcing,
}

impl<H> std::fmt::Debug for Agent<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("me", &self.me).finish_non_exhaustive()
    }
}

/// One plugin's call inside the agent: the runtime's, or one that the meta plugin makes of it.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    pub request: &'a Request,
    pub netns: Option<&'a Netns>,
    pub abort: &'a Abort,
    pub known: &'a Known,
    /// Program of the runtime that called; empty where that cannot be told.
    pub runtime: &'a str,
}

/// What the meta plugin knows about a delegate, and a bare call does not.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// All NICs of the pod in order.
    pub nics: Option<Vec<NicOfPod>>,
    /// The pod, found already.
    pub pod: Option<Arc<Pod>>,
    /// Configuration of the coordinator that follows in the chain.
    pub coordinator: Option<Map<String, Value>>,
}

/// Plugins that run in the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ovs,
    Macvlan,
    Coordinator,
    Spiderpool,
    Ifacer,
    Mooring,
}

impl Kind {
    /// Of the type that a configuration names. `ovs` and `macvlan` are other projects' plugins.
    pub fn of(kind: &str) -> Option<Self> {
        Some(match kind {
            "cni-ovs" => Kind::Ovs,
            "cni-macvlan" => Kind::Macvlan,
            "coordinator" => Kind::Coordinator,
            "spiderpool" => Kind::Spiderpool,
            "ifacer" => Kind::Ifacer,
            "mooring" => Kind::Mooring,
            _ => return None,
        })
    }

    /// Of a call that one of our binaries made: there `ovs` and `macvlan` are ours, installed under those names.
    pub fn of_call(request: &Request) -> Option<Self> {
        match request.conf.kind.as_str() {
            "ovs" => return Some(Kind::Ovs),
            "macvlan" => return Some(Kind::Macvlan),
            kind if Self::of(kind).is_some() => return Self::of(kind),
            _ => {}
        }
        // As an IPAM plugin it gets the main plugin's configuration, whose `type` is the main plugin's.
        (request.conf.ipam_type() == Some("spiderpool")).then_some(Kind::Spiderpool)
    }

    pub(crate) fn role(self) -> Option<Role> {
        match self {
            Kind::Ovs | Kind::Macvlan => Some(Role::Main),
            Kind::Coordinator => Some(Role::Coordinator),
            Kind::Spiderpool => Some(Role::Addresses),
            Kind::Mooring => Some(Role::Meta),
            Kind::Ifacer => None,
        }
    }
}

impl<H: Host + 'static> Agent<H> {
    #[expect(clippy::too_many_arguments, reason = "wiring, called once")]
    pub fn new(
        me: Me,
        host: Arc<H>,
        client: Client,
        caches: Caches,
        journal: Arc<Journal>,
        leases: Leases,
        endpoints: Arc<Endpoints>,
        events: Arc<Events>,
    ) -> Self {
        Self {
            spool: Spool::new(me.spool.clone()),
            me,
            host,
            client,
            caches,
            journal,
            leases,
            endpoints,
            events,
            empty: backoff::EmptyPools::default(),
            coordinating: tokio::sync::Mutex::default(),
            announcing: announce::Announcing::default(),
        }
    }

    /// One plugin of ours. ADD returns a result, the other verbs none.
    pub(crate) async fn run_own<R: Runner>(
        &self,
        kind: Kind,
        turn: Turn<'_>,
        runner: &mut R,
    ) -> Result<Option<AddResult>, Error> {
        match (kind, turn.request.verb) {
            (_, Verb::Version | Verb::Status) => Ok(None),
            (_, Verb::Gc) => Err(Error::new(Error::INTERNAL, "gc is no call of one attachment")),
            (Kind::Ovs | Kind::Macvlan, Verb::Add) => self.nic_add(turn, runner).await.map(Some),
            (Kind::Ovs | Kind::Macvlan, Verb::Del) => self.nic_del(turn, runner).await.map(|()| None),
            (Kind::Ovs | Kind::Macvlan, Verb::Check) => self.nic_check(turn, runner).await.map(|()| None),
            (Kind::Spiderpool, Verb::Add) => self.ipam_add(turn).await.map(Some),
            (Kind::Spiderpool, Verb::Del) => {
                self.addresses_del(&turn.request.container_id, ifname(turn.request)?.as_str()).await.map(|()| None)
            }
            (Kind::Spiderpool, Verb::Check) => self.addresses_check(turn.request).map(|()| None),
            (Kind::Coordinator, Verb::Add) => self.coordinator_add(turn).await.map(Some),
            (Kind::Coordinator, Verb::Del) => {
                self.coordinator_del(&turn.request.container_id, ifname(turn.request)?).await.map(|()| None)
            }
            (Kind::Coordinator, Verb::Check) => self.coordinator_check(turn).await.map(|()| None),
            (Kind::Ifacer, Verb::Add) => self.ifacer_add(turn.request).await.map(Some),
            (Kind::Ifacer, Verb::Del | Verb::Check) => Ok(None),
            (Kind::Mooring, Verb::Add) => Box::pin(self.meta_add(turn, runner)).await.map(Some),
            (Kind::Mooring, Verb::Del) => Box::pin(self.meta_del(turn, runner)).await.map(|()| None),
            (Kind::Mooring, Verb::Check) => Box::pin(self.meta_check(turn, runner)).await.map(|()| None),
        }
    }

    /// The pod of a call; none where the runtime is no kubelet's.
    pub(crate) async fn pod_of(&self, turn: &Turn<'_>) -> Result<Option<Arc<Pod>>, Error> {
        if let Some(pod) = &turn.known.pod {
            return Ok(Some(pod.clone()));
        }
        let Some(reference) = turn.request.pod() else { return Ok(None) };
        tokio::select! {
            pod = self.caches.pod(&reference) => pod.map(Some).map_err(|e| pod_error(&e)),
            () = turn.abort.wait() => Err(hung_up()),
        }
    }

    /// All NICs that the pod will have, the runtime's first. `current` is the first where nothing says otherwise.
    pub(crate) fn nics_of(&self, pod: Option<&Pod>, turn: &Turn<'_>) -> Result<Vec<NicOfPod>, Error> {
        if let Some(nics) = &turn.known.nics {
            return Ok(nics.clone());
        }
        let current = ifname(turn.request)?;
        let Some(pod) = pod else { return Ok(vec![NicOfPod { name: current.to_string(), network: None }]) };
        meta::nics_of_pod(pod, current, self.me.primary.as_deref()).map_err(|e| e.to_cni())
    }

    /// Takes away what an entry stands for, as its DEL would.
    pub(crate) async fn take_away<R: Runner>(&self, entry: &Entry, runner: &mut R) -> Result<(), Error> {
        let abort = Abort::new();
        match &entry.work {
            Work::Addresses(_) => self.addresses_del(&entry.key.container_id, &entry.key.ifname).await,
            Work::Coordinator(_) => {
                let name = IfName::new(entry.key.ifname.clone()).map_err(|e| Error::new(Error::INTERNAL, e.to_string()))?;
                self.coordinator_del(&entry.key.container_id, &name).await
            }
            Work::Main(c) => {
                if entry.is_found() {
                    // Whether there was a coordinator nobody knows; without one this finds nothing.
                    let name = IfName::new(entry.key.ifname.clone()).map_err(|e| Error::new(Error::INTERNAL, e.to_string()))?;
                    self.coordinator_del(&entry.key.container_id, &name).await?;
                }
                let request = del_request(entry, &c.conf, &c.args, &c.path)?;
                let netns = living_netns(entry);
                let known = Known::default();
                let turn =
                    Turn { request: &request, netns: netns.as_ref(), abort: &abort, known: &known, runtime: &entry.runtime };
                self.nic_del(turn, runner).await
            }
            Work::Meta(_) => {
                let netns = living_netns(entry);
                self.meta_take_away(&entry.key, netns.as_ref(), runner).await
            }
        }
    }

    pub(crate) fn write(&self, entry: Entry) -> Result<(), Error> {
        self.journal.put(entry).map_err(journal_error)
    }

    /// Notes that an entry is being undone. Where that cannot be written the work goes on all the same: until a DEL has succeeded
    /// it comes again, and a DEL that fails because tmpfs is full would keep the tmpfs full.
    pub(crate) fn note(&self, entry: Entry) {
        if let Err(error) = self.write(entry) {
            tracing::warn!(%error, "failed to note what is being undone");
        }
    }

    /// Forgets an entry. On a full tmpfs it may come back after a restart; then it is taken away again, which is no harm.
    pub(crate) fn forget(&self, key: &Key) {
        if let Err(error) = self.journal.remove(key) {
            tracing::warn!(container = key.container_id, ifname = key.ifname, %error, "failed to strike an entry from the journal");
        }
    }

    /// Writes the SpiderEndpoints of pods that an earlier life may have left without: it ended between a reply and what it writes
    /// behind. Those that are as they should be cost a read each.
    pub async fn publish_again(&self, shutdown: Shutdown) {
        // Half of a pod's addresses would make half an endpoint of a whole one.
        tokio::select! {
            () = shutdown.wait() => return,
            () = self.leases.listed() => {}
        }
        let added = |e: &Entry| e.key.role == Role::Addresses && e.state == State::Added;
        let pods = self.journal.all().into_iter().filter(added).filter_map(|e| Some((e.key.container_id, e.pod?)));
        let mut left: HashMap<String, PodRef> = pods.collect();
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            for (container, reference) in std::mem::take(&mut left) {
                use crate::caches::PodError;
                let pod = tokio::select! {
                    () = shutdown.wait() => return,
                    pod = self.caches.pod(&reference) => pod,
                };
                match pod {
                    Ok(pod) => self.publish(&pod, &container).await,
                    // Its DEL is on the way.
                    Err(PodError::Absent(_) | PodError::Replaced { .. } | PodError::Finished(..)) => {}
                    Err(PodError::Get(..) | PodError::Timeout(_)) => {
                        left.insert(container, reference);
                    }
                }
            }
            if left.is_empty() {
                return;
            }
            tokio::select! {
                () = shutdown.wait() => return,
                () = backoff.wait() => {}
            }
        }
    }

    /// Says on the pod why it has no network.
    pub(crate) fn tell(&self, pod: Option<&PodRef>, error: &Error) {
        let Some(pod) = pod else { return };
        let reason = match error.code {
            Error::INVALID_CONFIG | Error::DECODE_FAILURE if error.msg.contains("annotation") => Reason::InvalidAnnotation,
            Error::INVALID_CONFIG | Error::TRY_AGAIN if error.msg.contains("pool") || error.msg.contains("address") => {
                Reason::NoAddress
            }
            Error::MISSING if error.msg.contains("network") => Reason::NoNetwork,
            _ => Reason::AttachFailed,
        };
        self.events.warn(pod, reason, &error.to_string());
    }
}

impl<H: Host + 'static> Handler for Agent<H> {
    async fn call<R: Runner>(&self, call: &Call, netns: Option<OwnedFd>, runner: &mut R, abort: &Abort) -> Result<Value, Error> {
        let done = self.serve(call, netns, runner, abort).await;
        // Not after ADD, which a pod's start waits for.
        if matches!(call.verb, Verb::Del | Verb::Gc | Verb::Status) {
            self.drain_by(runner).await;
        }
        done
    }

    async fn take_back(&self, call: &Call) {
        let Ok(request) = call.request() else { return };
        let Some(role) = Kind::of_call(&request).and_then(Kind::role) else { return };
        let Some(entry) = self.journal.get(&Key::new(&call.container_id, &call.ifname, role)) else { return };
        if let Err(error) = self.take_away(&entry, &mut NoRunner).await {
            tracing::warn!(container = call.container_id, ifname = call.ifname, %error, "failed to take back what nobody heard of; the runtime's DEL or the next start will");
        }
    }
}

impl<H: Host + 'static> Agent<H> {
    async fn serve<R: Runner>(&self, call: &Call, netns: Option<OwnedFd>, runner: &mut R, abort: &Abort) -> Result<Value, Error> {
        let request = call.request()?;
        let kind = Kind::of_call(&request)
            .ok_or_else(|| Error::config(format!("type {:?}: the agent runs no such plugin", request.conf.kind)))?;
        match request.verb {
            Verb::Version => return Ok(cni::version::reply(&serde_json::to_vec(&call.stdin).unwrap_or_default())),
            Verb::Status => return self.status(kind, &request, runner).await.map(|()| Value::Null),
            Verb::Gc => return self.gc(&request, &call.runtime, runner).await.map(|()| Value::Null),
            Verb::Add | Verb::Del | Verb::Check => {}
        }
        let netns = match netns {
            Some(fd) => Some(
                Netns::from_fd(fd, request.netns.clone().map(PathBuf::from))
                    .map_err(|e| Error::env(format!("CNI_NETNS: {e}")))?,
            ),
            None if request.verb == Verb::Del || kind == Kind::Spiderpool => None,
            None => {
                return Err(Error::env(format!(
                    "CNI_NETNS {:?}: its descriptor did not come with the call",
                    request.netns.as_deref().unwrap_or_default()
                )));
            }
        };
        let known = Known::default();
        let turn = Turn { request: &request, netns: netns.as_ref(), abort, known: &known, runtime: &call.runtime };
        let began = tokio::time::Instant::now();
        let done = self.run_own(kind, turn, runner).await;
        let (verb, pod, container, name) = (request.verb, request.pod(), &request.container_id, &call.ifname);
        let pod_text = pod.as_ref().map(ToString::to_string).unwrap_or_default();
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match done {
            Ok(result) => {
                tracing::info!(%verb, kind = ?kind, pod = pod_text, container, ifname = name, ms, "done");
                Ok(result.map_or(Value::Null, |r| r.to_value(request.conf.version)))
            }
            Err(e) => {
                tracing::warn!(%verb, kind = ?kind, pod = pod_text, container, ifname = name, ms, code = e.code, error = %e, "failed");
                if verb == Verb::Add && !abort.is_set() {
                    self.tell(pod.as_ref(), &e);
                }
                Err(e)
            }
        }
    }
}

/// CNI_IFNAME of a call that has one.
pub(crate) fn ifname(request: &Request) -> Result<&IfName, Error> {
    request.attachment_ifname()
}

pub(crate) fn hung_up() -> Error {
    Error::new(Error::TRY_AGAIN, "the caller hung up or the agent is stopping; what was begun was undone")
}

pub(crate) fn journal_error(e: JournalError) -> Error {
    Error::io(crate::cni_server::with_causes(&e))
}

pub(crate) fn pod_error(e: &crate::caches::PodError) -> Error {
    use crate::caches::PodError;
    let code = match e {
        PodError::Absent(_) | PodError::Get(..) | PodError::Timeout(_) => Error::TRY_AGAIN,
        PodError::Replaced { .. } | PodError::Finished(..) => Error::CONFLICT,
    };
    Error::new(code, crate::cni_server::with_causes(e))
}

/// The DEL that belongs to an entry.
pub(crate) fn del_request(entry: &Entry, conf: &Value, args: &str, path: &str) -> Result<Request, Error> {
    let raw = cni::request::RawCall {
        command: Verb::Del.as_str().to_owned(),
        container_id: entry.key.container_id.clone(),
        // Another namespace may be at that path by now: a foreign plugin is not to be led there.
        netns: living_netns(entry).and(entry.netns.as_ref()).map(|n| n.path.clone()).unwrap_or_default(),
        ifname: entry.key.ifname.clone(),
        args: args.to_owned(),
        path: path.to_owned(),
    };
    Request::from_value(&raw, conf.clone())
}

/// The entry's network namespace, where its path still leads to the same one.
pub(crate) fn living_netns(entry: &Entry) -> Option<Netns> {
    let noted = entry.netns.as_ref()?;
    Netns::open(&noted.path).ok().filter(|n| n.id().dev == noted.dev && n.id().ino == noted.ino)
}

/// Whether this is the namespace that ADD saw; where none is noted, any is.
pub(crate) fn is_noted(entry: &Entry, netns: &Netns) -> bool {
    entry.netns.as_ref().is_none_or(|noted| netns.id().ino == noted.ino && netns.id().dev == noted.dev)
}

pub(crate) fn netns_ref(netns: &Netns, path: Option<&str>) -> NetnsRef {
    let id = netns.id();
    NetnsRef { path: path.unwrap_or_default().to_owned(), dev: id.dev, ino: id.ino }
}

/// A configuration as DEL needs it.
pub(crate) fn without_prev(request: &Request) -> Value {
    let mut conf = request.conf.raw().clone();
    conf.remove("prevResult");
    Value::Object(conf)
}

/// A call as the journal keeps it.
pub(crate) fn call_of(request: &Request) -> journal::Call {
    journal::Call {
        conf: without_prev(request),
        args: request.raw_args.clone(),
        path: request.path.clone(),
        foreign_ipam: request.conf.ipam_type().is_some_and(|t| t != "spiderpool"),
        vlan: None,
        mac: None,
    }
}

/// A plan for the log, one event a line.
pub(crate) fn one_line(plan: &planner::Plan) -> String {
    plan.steps.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
