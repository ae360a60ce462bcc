//! A Linux host: netlink, OVSDB, /proc/sys. Assembles the parts below; decides nothing.
//!
//! Netlink calls are short but not instant: the kernel has one lock for all network configuration, and deleting a link waits
//! for a grace period of tens of milliseconds. So they run on tokio's threads for blocking work, which a current-thread
//! runtime has as well, and never hold up the runtime. One OVSDB connection with a monitor and one netlink socket of
//! the host stay open; sockets in pods are opened for each call and closed with it.

mod changes;
mod kernel;
mod ovs;

pub(crate) use ovs::owner;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use model::Owner;
use model::observed::{Look, NetnsState, Observed, Scope};
use netlink::{Netns, Socket};
use ovsdb::Endpoint;
use planner::{Ns, Plan, Step};
use tokio::sync::watch;

use crate::error::{ApplyError, HostError, StepError, Undo};
use crate::exec::{self, Done, Failed, Hands};
use crate::{Host, Marked, Way, What};

/// The host of one network namespace. Clones share everything.
#[derive(Debug, Clone)]
pub struct LinuxHost(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    netns: Netns,
    socket: Socket,
    ovs: Option<ovs::Ovs>,
    changes: OnceLock<changes::Changes>,
}

impl LinuxHost {
    /// The namespace of the calling thread, and Open vSwitch at `ovsdb` if the host has any. Does not wait for it: it may be
    /// installed or started later. Must be called within a tokio runtime with I/O and time enabled.
    pub async fn new(ovsdb: Option<Endpoint>) -> Result<Self, HostError> {
        let netns = Netns::current().map_err(|cause| HostError::Netlink { place: "host", cause })?;
        Self::in_netns(netns, ovsdb).await
    }

    /// The same for a host that is another network namespace.
    pub async fn in_netns(netns: Netns, ovsdb: Option<Endpoint>) -> Result<Self, HostError> {
        let socket = Socket::open_in(&netns).map_err(|cause| HostError::Netlink { place: "host", cause })?;
        let ovs = match ovsdb {
            Some(endpoint) => Some(ovs::Ovs::connect(endpoint).await?),
            None => None,
        };
        Ok(Self(Arc::new(Inner { netns, socket, ovs, changes: OnceLock::new() })))
    }

    /// `apply`, with step `fail_at` failing before it is begun: to prove that undo works, on the real thing.
    pub async fn apply_failing_at(&self, pod: Option<&Netns>, plan: &Plan, fail_at: usize) -> Result<(), ApplyError> {
        self.spawn_apply(pod, plan, Some(fail_at)).await
    }

    /// In a task of its own, which nobody cancels: a plan that was begun is carried out, or back.
    async fn spawn_apply(&self, pod: Option<&Netns>, plan: &Plan, fail_at: Option<usize>) -> Result<(), ApplyError> {
        if plan.is_empty() {
            return Ok(());
        }
        let aborted =
            |cause| ApplyError { index: 0, step: Box::new(plan.steps[0].clone()), cause: Box::new(cause), undo: Undo::Complete };
        let pod = pod.map(Netns::try_clone).transpose().map_err(|e| aborted(e.into()))?;
        let session = Session { host: self.0.clone(), pod: pod.map(|netns| Arc::new(Pod { netns, socket: OnceLock::new() })) };
        let task_plan = plan.clone();
        let task = tokio::spawn(async move { exec::run(&session, &task_plan, fail_at).await });
        match task.await {
            Ok(result) => result,
            Err(e) => Err(aborted(StepError::Task(e.to_string()))),
        }
    }
}

impl Host for LinuxHost {
    async fn observe(&self, pod: Option<&Netns>, scope: &Scope) -> Result<Observed, HostError> {
        let ovs = match (&self.0.ovs, scope.ovs) {
            (Some(ovs), true) => ovs.observe().await?,
            _ => None,
        };
        let pod = match scope.pod {
            Look::Nothing => None,
            _ => pod.map(Netns::try_clone).transpose().map_err(|cause| HostError::Netlink { place: "pod's", cause })?,
        };
        let (inner, scope) = (self.0.clone(), scope.clone());
        let (host, pod) = blocking(move || {
            let host = look(&inner.socket, &scope.host).map_err(|cause| HostError::Netlink { place: "host's", cause })?;
            let in_pod = |netns: Netns| look(&Socket::open_in(&netns)?, &scope.pod);
            let pod = pod.map(in_pod).transpose().map_err(|cause| HostError::Netlink { place: "pod's", cause })?;
            Ok((host, pod.unwrap_or_default()))
        })
        .await
        .map_err(HostError::Task)??;
        Ok(Observed { host, pod, ovs })
    }

    async fn apply(&self, pod: Option<&Netns>, plan: &Plan) -> Result<(), ApplyError> {
        self.spawn_apply(pod, plan, None).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        let start = || changes::Changes::start(&self.0.netns, self.0.ovs.as_ref());
        self.0.changes.get_or_init(start).subscribe()
    }

    async fn find_marked(&self, pod: Option<&Netns>) -> Result<Vec<Marked>, HostError> {
        let mut out = match &self.0.ovs {
            Some(ovs) => ovs.find_marked().await?,
            None => Vec::new(),
        };
        let failed = |place| move |cause| HostError::Netlink { place, cause };
        let pod = pod.map(Netns::try_clone).transpose().map_err(failed("pod's"))?;
        let inner = self.0.clone();
        let links = blocking(move || {
            let mut links = marked_links(Ns::Host, &inner.socket).map_err(failed("host's"))?;
            if let Some(pod) = pod {
                links.extend(Socket::open_in(&pod).and_then(|s| marked_links(Ns::Pod, &s)).map_err(failed("pod's"))?);
            }
            Ok(links)
        });
        out.extend(links.await.map_err(HostError::Task)??);
        Ok(out)
    }

    async fn route_get(&self, to: IpAddr) -> Result<Option<Way>, HostError> {
        let inner = self.0.clone();
        let way = blocking(move || {
            let Some(found) = inner.socket.route_get(to)? else { return Ok(None) };
            let link = inner.socket.link_by_index(found.link)?;
            Ok(link.map(|l| Way { dev: l.name, gw: found.gw, src: found.src }))
        });
        way.await.map_err(HostError::Task)?.map_err(|cause| HostError::Netlink { place: "host's", cause })
    }
}

/// The error is what a panic said.
async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(act).await.map_err(|e| e.to_string())
}

fn look(socket: &Socket, what: &Look) -> Result<NetnsState, netlink::Error> {
    match what {
        Look::Nothing => Ok(NetnsState::default()),
        Look::All => socket.state(),
        Look::Links(names) => {
            let mut links = Vec::with_capacity(names.len());
            for name in names {
                links.extend(socket.link(name)?);
            }
            Ok(NetnsState { links, ..NetnsState::default() })
        }
    }
}

fn marked_links(ns: Ns, socket: &Socket) -> Result<Vec<Marked>, netlink::Error> {
    let marked = |l: model::observed::Link| {
        let owner = Owner::from_alias(l.alias.as_deref()?)?;
        Some(Marked { owner, what: What::Link { ns, name: l.name } })
    };
    Ok(socket.links()?.into_iter().filter_map(marked).collect())
}

/// What one call of `apply` works with.
#[derive(Debug)]
struct Session {
    host: Arc<Inner>,
    pod: Option<Arc<Pod>>,
}

#[derive(Debug)]
struct Pod {
    netns: Netns,
    /// Opened when first needed: some plans only touch OVSDB.
    socket: OnceLock<Socket>,
}

impl Pod {
    fn socket(&self) -> Result<&Socket, netlink::Error> {
        match self.socket.get() {
            Some(s) => Ok(s),
            None => {
                let opened = Socket::open_in(&self.netns)?;
                Ok(self.socket.get_or_init(|| opened))
            }
        }
    }
}

impl Hands for Session {
    async fn carry_out(&self, run: &[Step]) -> Result<Vec<Done>, Failed> {
        let nothing = |cause| Failed { at: 0, cause, changed: vec![false; run.len()] };
        match run.first() {
            None => Ok(Vec::new()),
            Some(first) if first.is_ovsdb() => match &self.host.ovs {
                Some(ovs) => ovs.carry_out(run).await,
                None => Err(nothing(StepError::NoOvs)),
            },
            Some(_) => {
                let (host, pod, steps) = (self.host.clone(), self.pod.clone(), run.to_vec());
                let kernel =
                    move || kernel::Kernel { host_netns: &host.netns, host: &host.socket, pod: pod.as_deref() }.carry_out(&steps);
                match blocking(kernel).await {
                    Ok(done) => done,
                    // Whatever it had done by then has to be tried to be taken back.
                    Err(panic) => Err(Failed { at: 0, cause: StepError::Task(panic), changed: vec![true; run.len()] }),
                }
            }
        }
    }
}
