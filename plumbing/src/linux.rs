//! A Linux host: netlink, OVSDB, /proc/sys. Assembles the parts below; decides nothing.
//!
//! Netlink calls are short but not instant: the kernel has one lock for all network configuration, and deleting a link waits
//! for a grace period of tens of milliseconds. So they run on tokio's threads for blocking work, inside the pod's namespace
//! where there is one, and never hold up the runtime. One OVSDB connection with a monitor and one netlink
//! socket of the host stay open; one in a pod is opened for a call and closed with the caller's handle of the namespace.

mod changes;
mod kernel;
mod kernel_host;
mod ovs;

pub use kernel_host::KernelHost;
pub(crate) use ovs::owner;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use model::observed::{Look, LookOvs, Observed, Scope};
use model::{IfName, Owner};
use netlink::{Announced, Netns, Socket};
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
    kernel: KernelHost,
    ovs: Option<ovs::Ovs>,
    changes: OnceLock<changes::Changes>,
}

impl LinuxHost {
    /// The namespace of the calling thread, and Open vSwitch at `ovsdb` if the host has any. Does not wait for it: it may be
    /// installed or started later. Must be called within a tokio runtime with I/O and time enabled.
    pub async fn new(ovsdb: Option<Endpoint>) -> Result<Self, HostError> {
        Self::on(KernelHost::new()?, ovsdb).await
    }

    /// The same for a host that is another network namespace.
    pub async fn in_netns(netns: Netns, ovsdb: Option<Endpoint>) -> Result<Self, HostError> {
        Self::on(KernelHost::in_netns(netns)?, ovsdb).await
    }

    async fn on(kernel: KernelHost, ovsdb: Option<Endpoint>) -> Result<Self, HostError> {
        let ovs = match ovsdb {
            Some(endpoint) => Some(ovs::Ovs::connect(endpoint).await?),
            None => None,
        };
        Ok(Self(Arc::new(Inner { kernel, ovs, changes: OnceLock::new() })))
    }

    /// `apply`, with step `fail_at` failing before it is begun: to prove that undo works, on the real thing.
    pub async fn apply_failing_at(&self, pod: Option<&Netns>, plan: &Plan, fail_at: usize) -> Result<(), ApplyError> {
        self.spawn_apply(pod, plan, Some(fail_at)).await
    }

    /// In a task or on a thread of its own, which nobody cancels: a plan that was begun is carried out, or back.
    async fn spawn_apply(&self, pod: Option<&Netns>, plan: &Plan, fail_at: Option<usize>) -> Result<(), ApplyError> {
        if plan.is_empty() {
            return Ok(());
        }
        let aborted =
            |cause| ApplyError { index: 0, step: Box::new(plan.steps[0].clone()), cause: Box::new(cause), undo: Undo::Complete };
        let (host, pod, work) = (self.0.clone(), pod.cloned(), plan.clone());
        let done = if plan.steps.iter().any(Step::is_ovsdb) {
            let session = Session { host, pod };
            tokio::spawn(async move { exec::run(&session, &work, fail_at).await }).await.map_err(|e| e.to_string())
        } else {
            let netns = pod.clone().filter(|_| plan.steps.iter().any(kernel::is_inside));
            on_thread(netns, move || host.kernel.carry_out(pod.as_ref(), &work, fail_at)).await
        };
        done.unwrap_or_else(|panic| Err(aborted(StepError::Task(panic))))
    }
}

impl Host for LinuxHost {
    async fn observe(&self, pod: Option<&Netns>, scope: &Scope) -> Result<Observed, HostError> {
        let ovs = match (&self.0.ovs, &scope.ovs) {
            (Some(ovs), look) if *look != LookOvs::Nothing => ovs.observe(look).await?,
            _ => None,
        };
        let (inner, scope, pod) = (self.0.clone(), scope.clone(), pod.cloned());
        let looks_inside = scope.pod != Look::Nothing;
        let netns = pod.clone().filter(|_| looks_inside);
        let mut seen = on_thread(netns, move || inner.kernel.observe(pod.as_ref(), &scope)).await.map_err(HostError::Task)??;
        seen.ovs = ovs;
        Ok(seen)
    }

    async fn apply(&self, pod: Option<&Netns>, plan: &Plan) -> Result<(), ApplyError> {
        self.spawn_apply(pod, plan, None).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        let start = || changes::Changes::start(self.0.kernel.netns(), self.0.ovs.as_ref());
        self.0.changes.get_or_init(start).subscribe()
    }

    async fn find_marked(&self, pod: Option<&Netns>) -> Result<Vec<Marked>, HostError> {
        let mut out = match &self.0.ovs {
            Some(ovs) => ovs.find_marked().await?,
            None => Vec::new(),
        };
        let failed = |place| move |cause| HostError::Netlink { place, cause };
        let (inner, pod) = (self.0.clone(), pod.cloned());
        let links = on_thread(pod.clone(), move || {
            let mut links = marked_links(Ns::Host, inner.kernel.socket()).map_err(failed("host's"))?;
            if let Some(pod) = pod {
                links.extend(pod.socket().and_then(|s| marked_links(Ns::Pod, s)).map_err(failed("pod's"))?);
            }
            Ok(links)
        });
        out.extend(links.await.map_err(HostError::Task)??);
        Ok(out)
    }

    async fn announce_again(&self, pod: &Netns, dev: &IfName, ips: &[IpAddr]) -> Result<bool, HostError> {
        let (inside, pod, dev, ips) = (pod.clone(), pod.clone(), dev.clone(), ips.to_owned());
        let again = on_thread(Some(inside), move || netlink::announce_again(Some(&pod), &dev, &ips)).await;
        let done = again.map_err(HostError::Task)?.map_err(|cause| HostError::Netlink { place: "pod's", cause })?;
        Ok(done == Announced::Sent)
    }

    async fn route_get(&self, to: IpAddr) -> Result<Option<Way>, HostError> {
        let inner = self.0.clone();
        let way = on_thread(None, move || {
            let socket = inner.kernel.socket();
            let Some(found) = socket.route_get(to)? else { return Ok(None) };
            let link = socket.link_by_index(found.link)?;
            Ok(link.map(|l| Way { dev: l.name, gw: found.gw, src: found.src }))
        });
        way.await.map_err(HostError::Task)?.map_err(|cause| HostError::Netlink { place: "host's", cause })
    }
}

/// Runs what blocks, on one of tokio's threads for that, which is inside `netns` meanwhile. The error is what a panic said.
async fn on_thread<T: Send + 'static>(netns: Option<Netns>, act: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let act = move || {
        // Once for all that it does. Where the namespace cannot be entered, `act` finds that out for itself, step by step.
        let _inside = netns.as_ref().map(Netns::visit);
        act()
    };
    tokio::task::spawn_blocking(act).await.map_err(|e| e.to_string())
}

fn marked_links(ns: Ns, socket: &Socket) -> Result<Vec<Marked>, netlink::Error> {
    let marked = |l: model::observed::Link| {
        let owner = Owner::from_alias(l.alias.as_deref()?)?;
        Some(Marked { owner, what: What::Link { ns, name: l.name } })
    };
    Ok(socket.links()?.into_iter().filter_map(marked).collect())
}

/// What a plan with OVSDB steps works with.
#[derive(Debug)]
struct Session {
    host: Arc<Inner>,
    pod: Option<Netns>,
}

impl Hands for Session {
    async fn carry_out(&self, run: &[Step]) -> Result<Vec<Done>, Failed> {
        let nothing = |cause| Failed { at: 0, cause, changed: vec![false; run.len()] };
        if run.first().is_some_and(Step::is_ovsdb) {
            return match &self.host.ovs {
                Some(ovs) => ovs.carry_out(run).await,
                None => Err(nothing(StepError::NoOvs)),
            };
        }
        let (host, pod, steps) = (self.host.clone(), self.pod.clone(), run.to_vec());
        let netns = pod.clone().filter(|_| run.iter().any(kernel::is_inside));
        match on_thread(netns, move || host.kernel.hands(pod.as_ref()).carry_out(&steps)).await {
            Ok(done) => done,
            // Whatever it had done by then has to be tried to be taken back.
            Err(panic) => Err(Failed { at: 0, cause: StepError::Task(panic), changed: vec![true; run.len()] }),
        }
    }
}
