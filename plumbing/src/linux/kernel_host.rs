//! What the kernel alone does of a host, on the calling thread: no Open vSwitch, no runtime. The part of `LinuxHost` that
//! blocks, and all that a process needs which makes one NIC and ends.

use std::panic::{AssertUnwindSafe, catch_unwind};

use model::observed::{Look, NetnsState, Observed, Scope};
use netlink::{Netns, Socket};
use planner::{Plan, Step};

use super::kernel::{self, Kernel};
use crate::error::{ApplyError, HostError, StepError};
use crate::exec::{self, Done, Failed, Hands};

/// A network namespace with a socket in it.
#[derive(Debug)]
pub struct KernelHost {
    netns: Netns,
    socket: Socket,
}

impl KernelHost {
    /// The namespace of the calling thread.
    pub fn new() -> Result<Self, HostError> {
        let host = |cause| HostError::Netlink { place: "host", cause };
        Ok(Self { netns: Netns::current().map_err(host)?, socket: Socket::open().map_err(host)? })
    }

    /// Another one.
    pub fn in_netns(netns: Netns) -> Result<Self, HostError> {
        let socket = Socket::open_in(&netns).map_err(|cause| HostError::Netlink { place: "host", cause })?;
        Ok(Self { netns, socket })
    }

    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// As `Host::observe`, without Open vSwitch.
    pub fn observe(&self, pod: Option<&Netns>, scope: &Scope) -> Result<Observed, HostError> {
        let failed = |place| move |cause| HostError::Netlink { place, cause };
        let host = look(&self.socket, &scope.host).map_err(failed("host's"))?;
        let pod = match (pod, &scope.pod) {
            (None, _) | (_, Look::Nothing) => NetnsState::default(),
            (Some(netns), what) => netns.socket().and_then(|s| look(s, what)).map_err(failed("pod's"))?,
        };
        Ok(Observed { host, pod, ovs: None })
    }

    /// As `Host::apply`.
    pub fn apply(&self, pod: Option<&Netns>, plan: &Plan) -> Result<(), ApplyError> {
        self.carry_out(pod, plan, None)
    }

    pub(super) fn carry_out(&self, pod: Option<&Netns>, plan: &Plan, fail_at: Option<usize>) -> Result<(), ApplyError> {
        exec::at_once(exec::run(&OneThread(self.hands(pod)), plan, fail_at))
    }

    pub(super) fn hands<'a>(&'a self, pod: Option<&'a Netns>) -> Kernel<'a> {
        Kernel { host_netns: &self.netns, host: &self.socket, pod }
    }
}

struct OneThread<'a>(Kernel<'a>);

impl Hands for OneThread<'_> {
    async fn carry_out(&self, run: &[Step]) -> Result<Vec<Done>, Failed> {
        let nothing = |cause| Failed { at: 0, cause, changed: vec![false; run.len()] };
        if run.first().is_some_and(Step::is_ovsdb) {
            return Err(nothing(StepError::NoOvs));
        }
        let act = || match self.0.pod.filter(|_| run.iter().any(kernel::is_inside)) {
            // Once for all of them.
            Some(netns) => netns.enter(|| self.0.carry_out(run)).unwrap_or_else(|e| Err(nothing(e.into()))),
            None => self.0.carry_out(run),
        };
        // Whatever it had done by a panic has to be tried to be taken back.
        let panicked =
            |_| Err(Failed { at: 0, cause: StepError::Task("a step panicked".to_owned()), changed: vec![true; run.len()] });
        catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(panicked)
    }
}

fn look(socket: &Socket, what: &Look) -> Result<NetnsState, netlink::Error> {
    match what {
        Look::Nothing => Ok(NetnsState::default()),
        Look::All => socket.state(),
        Look::AllLinks => Ok(NetnsState { links: socket.links()?, ..NetnsState::default() }),
        Look::Routes => socket.links_and_routes(),
        Look::Links(names) => {
            let mut links = Vec::with_capacity(names.len());
            for name in names {
                links.extend(socket.link(name)?);
            }
            Ok(NetnsState { links, ..NetnsState::default() })
        }
    }
}
