//! A plugin on a host without an agent: the same plans, carried out in the plugin's own process, with a foreign IPAM plugin.
//! Keeps nothing on disk: what is ours carries its mark, and DEL finds it by that.

use cni::{AddResult, Error, Request, Verb, shim};
use model::RunBy;
use model::observed::{Look, LookOvs, Observed, Scope};
use planner::{Aim, MainPlugin, Nic, Plan, Step};
use plumbing::{ApplyError, Host as _, HostError, KernelHost, LinuxHost, Netns};
use serde_json::Value;

use crate::attach::{attach_of, check_error, error_of, nic_of, nic_of_prev, result_of};
use crate::garbage::{PROCESS_KEY, RUNTIME_KEY, Stays};

/// What is to stay and what is there, to the steps that take the rest away.
pub type Garbage = fn(&Stays<'_>, &Observed) -> Plan;

/// A host, looked at and changed by whoever waits for it.
pub trait Place {
    /// Nothing where there is no Open vSwitch, nor should be.
    const OVS: LookOvs;
    /// As `plumbing::Host::observe`.
    fn observe(&self, netns: Option<&Netns>, scope: &Scope) -> Result<Observed, HostError>;
    /// As `plumbing::Host::apply`.
    fn apply(&self, netns: Option<&Netns>, plan: &Plan) -> Result<(), ApplyError>;
}

/// For a plugin that has nothing to do with Open vSwitch.
impl Place for KernelHost {
    const OVS: LookOvs = LookOvs::Nothing;

    fn observe(&self, netns: Option<&Netns>, scope: &Scope) -> Result<Observed, HostError> {
        KernelHost::observe(self, netns, scope)
    }

    fn apply(&self, netns: Option<&Netns>, plan: &Plan) -> Result<(), ApplyError> {
        KernelHost::apply(self, netns, plan)
    }
}

/// A host with Open vSwitch, whose connection needs a runtime.
#[derive(Debug)]
pub struct OvsHost {
    runtime: tokio::runtime::Runtime,
    host: LinuxHost,
}

impl OvsHost {
    /// Does not wait for Open vSwitch.
    ///
    /// # Errors
    /// As a call of the plugin fails.
    pub fn new(endpoint: ovsdb::Endpoint) -> Result<Self, Error> {
        let start = |e| Error::io(format!("failed to start: {}", chain(&e)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
        let host = runtime.block_on(LinuxHost::new(Some(endpoint))).map_err(|e| look_error(&e))?;
        Ok(Self { runtime, host })
    }
}

impl Place for OvsHost {
    const OVS: LookOvs = LookOvs::All;

    fn observe(&self, netns: Option<&Netns>, scope: &Scope) -> Result<Observed, HostError> {
        self.runtime.block_on(self.host.observe(netns, scope))
    }

    fn apply(&self, netns: Option<&Netns>, plan: &Plan) -> Result<(), ApplyError> {
        self.runtime.block_on(self.host.apply(netns, plan))
    }
}

/// `KernelHost::new` as a call of the plugin fails.
///
/// # Errors
/// No netlink.
pub fn kernel_host() -> Result<KernelHost, Error> {
    KernelHost::new().map_err(|e| look_error(&e))
}

/// One call, with what the particular plugin brings.
#[allow(missing_debug_implementations, reason = "a trait object and a function have nothing to show")]
pub struct Alone<'a, P> {
    pub request: &'a Request,
    pub plugin: &'a dyn MainPlugin,
    pub host: P,
    /// Steps that take away what no valid attachment of this network owns; none where all of it lives and dies with the
    /// container's network namespace.
    pub gc: Option<Garbage>,
}

impl<P: Place> Alone<'_, P> {
    /// What ADD prints; null for the other verbs.
    pub fn run(&self) -> Result<Value, Error> {
        let netns = self.netns()?;
        let host = &self.host;
        match self.request.verb {
            Verb::Add => self.add(host, netns.as_ref()),
            Verb::Del => self.del(host, netns.as_ref()).map(|()| Value::Null),
            Verb::Check => self.check(host, netns.as_ref()).map(|()| Value::Null),
            Verb::Status => self.status(host).map(|()| Value::Null),
            Verb::Gc => self.collect(host).map(|()| Value::Null),
            Verb::Version => Ok(cni::version::reply(b"")),
        }
    }

    /// None only at DEL, when the namespace is gone, and for the verbs that have none.
    fn netns(&self) -> Result<Option<Netns>, Error> {
        let Some(path) = &self.request.netns else { return Ok(None) };
        let unknown = |e: &dyn std::fmt::Display| Error::new(Error::UNKNOWN_CONTAINER, format!("CNI_NETNS {path:?}: {e}"));
        let netns = match Netns::open(path) {
            Ok(n) => n,
            Err(netlink::Error::NotNetns { .. }) if self.request.verb == Verb::Del => return Ok(None),
            Err(netlink::Error::OpenNetns { source, .. })
                if self.request.verb == Verb::Del && source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Ok(None);
            }
            Err(e) => return Err(unknown(&chain(&e))),
        };
        let own = Netns::current().map_err(|e| unknown(&chain(&e)))?;
        if own.id() == netns.id() {
            return Err(unknown(&"is the network namespace that this plugin runs in, not a container's"));
        }
        Ok(Some(netns))
    }

    fn add(&self, host: &P, netns: Option<&Netns>) -> Result<Value, Error> {
        let bare = attach_of(self.request, Nic::default(), RunBy::Alone)?;
        let seen = host.observe(netns, &self.plugin.scope(&bare, Aim::Add)).map_err(|e| look_error(&e))?;
        // Refused here, nothing has been taken from the IPAM.
        self.plugin.plan_add(&bare, &seen).map_err(|r| error_of(&r))?;
        let ipam = self.ipam_add()?;
        let made = || {
            let nic = ipam.as_ref().map(nic_of).unwrap_or_default();
            let attach = attach_of(self.request, nic, RunBy::Alone)?;
            let plan = self.plugin.plan_add(&attach, &seen).map_err(|r| error_of(&r))?;
            let plan = told(plan, &shim::parent::runtime(&self.request.path), &shim::parent::this_process());
            let result = result_of(&attach, &plan, self.request, ipam.as_ref())?;
            host.apply(netns, &plan).map_err(|e| apply_error(&e))?;
            Ok(result.to_value(self.request.conf.version))
        };
        match made() {
            Ok(v) => Ok(v),
            Err(e) => Err(self.give_back(e)),
        }
    }

    /// None where there is no IPAM. One without addresses is an error, as in the reference plugins.
    fn ipam_add(&self) -> Result<Option<AddResult>, Error> {
        let Some(plugin) = self.request.conf.ipam_type() else { return Ok(None) };
        match shim::delegate(self.request, plugin, Verb::Add, self.stdin()) {
            Ok(Some(r)) if !r.ips.is_empty() => Ok(Some(r)),
            Ok(_) => Err(self.give_back(Error::new(Error::DELEGATE, format!("ipam plugin {plugin:?} gave no address")))),
            // It may have taken one before it failed or was killed.
            Err(e) => Err(self.give_back(e)),
        }
    }

    /// The error, after the IPAM has been told to forget.
    fn give_back(&self, mut e: Error) -> Error {
        if let Err(undo) = self.ipam(Verb::Del) {
            let sep = if e.details.is_empty() { "" } else { "; " };
            e.details = format!("{}{sep}and the ipam plugin failed to take its address back: {undo}", e.details);
        }
        e
    }

    /// Any verb but ADD, where there is an IPAM.
    fn ipam(&self, verb: Verb) -> Result<(), Error> {
        match self.request.conf.ipam_type() {
            Some(plugin) => shim::delegate(self.request, plugin, verb, self.stdin()).map(drop),
            None => Ok(()),
        }
    }

    fn stdin(&self) -> Value {
        Value::Object(self.request.conf.raw().clone())
    }

    /// The address goes back last: as long as the link is there it must not be given to another.
    fn del(&self, host: &P, netns: Option<&Netns>) -> Result<(), Error> {
        let attach = attach_of(self.request, Nic::default(), RunBy::Alone)?;
        let seen = host.observe(netns, &self.plugin.scope(&attach, Aim::Del)).map_err(|e| look_error(&e))?;
        host.apply(netns, &self.plugin.plan_del(&attach, &seen)).map_err(|e| apply_error(&e))?;
        self.ipam(Verb::Del)
    }

    fn check(&self, host: &P, netns: Option<&Netns>) -> Result<(), Error> {
        self.ipam(Verb::Check)?;
        let attach = attach_of(self.request, nic_of_prev(self.request), RunBy::Alone)?;
        let seen = host.observe(netns, &self.plugin.scope(&attach, Aim::Check)).map_err(|e| look_error(&e))?;
        self.plugin.check(&attach, &seen).map_err(|r| check_error(&r))
    }

    fn status(&self, host: &P) -> Result<(), Error> {
        let unavailable = |e: String| Error::new(Error::NOT_AVAILABLE, e);
        let scope = Scope { ovs: P::OVS, ..Scope::default() };
        let seen = host.observe(None, &scope).map_err(|e| unavailable(chain(&e)))?;
        if P::OVS != LookOvs::Nothing && seen.ovs.is_none() {
            return Err(unavailable("Open vSwitch is not running on this host".into()));
        }
        self.ipam(Verb::Status)
    }

    fn collect(&self, host: &P) -> Result<(), Error> {
        let conf = &self.request.conf;
        let Some(valid) = &conf.valid_attachments else {
            return Err(Error::config("cni.dev/valid-attachments is missing, GC needs the list of attachments that stay"));
        };
        let own = match self.gc {
            Some(gc) => {
                let scope = Scope { host: Look::All, pod: Look::Nothing, ovs: P::OVS };
                let seen = host.observe(None, &scope).map_err(|e| look_error(&e))?;
                let valid: Vec<_> = valid.iter().map(cni::Attachment::id).collect();
                let stays = Stays {
                    network: &conf.name,
                    runtime: &shim::parent::runtime(&self.request.path),
                    valid: &valid,
                    is_running: &shim::parent::is_running,
                };
                host.apply(None, &gc(&stays, &seen)).map_err(|e| apply_error(&e))
            }
            None => Ok(()),
        };
        // Asked whatever became of ours.
        match (own, self.ipam(Verb::Gc)) {
            (own, Ok(())) => own,
            (Ok(()), Err(ipam)) => Err(ipam),
            (Err(e), Err(ipam)) => Err(e.with_details(format!("and the ipam plugin failed: {ipam}"))),
        }
    }
}

/// The plan, whose ports say by which runtime's call they are made and which process is at it: for GC, which has neither a
/// journal nor the other calls.
fn told(mut plan: Plan, runtime: &str, process: &str) -> Plan {
    for step in &mut plan.steps {
        if let Step::AddPort { port, .. } = step {
            for (key, value) in [(RUNTIME_KEY, runtime), (PROCESS_KEY, process)] {
                port.set.external_ids.insert(key.to_owned(), Some(value.to_owned()));
            }
        }
    }
    plan
}

/// The host could not be looked at: nothing was changed, and it may work later.
fn look_error(e: &HostError) -> Error {
    Error::new(Error::TRY_AGAIN, chain(e))
}

fn apply_error(e: &ApplyError) -> Error {
    Error::new(Error::APPLY, e.to_string())
}

/// An error and what is behind it, in one line. Some texts name their source already.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        let cause = e.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        next = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use model::IfName;
    use planner::step::{Port, PortSet};

    use super::*;

    #[test]
    fn a_port_made_alone_says_by_whom_also_when_it_is_undone() {
        let bridge = IfName::new("br1").expect("a short name");
        let port = Port { name: "veth1".to_owned(), interfaces: Vec::new(), set: PortSet::default() };
        let plan: Plan = [Step::AddPort { bridge, port }].into_iter().collect();
        let plan = told(plan, "/usr/bin/podman", "7/1");
        let undo = plan.undo(1);
        for step in plan.steps.iter().chain(&undo.steps) {
            let (Step::AddPort { port, .. } | Step::DelPort { port, .. }) = step else { panic!("{step}") };
            let get = |key: &str| port.set.external_ids.get(key).cloned().flatten();
            assert_eq!(get(RUNTIME_KEY).as_deref(), Some("/usr/bin/podman"));
            assert_eq!(get(PROCESS_KEY).as_deref(), Some("7/1"));
        }
    }
}
