//! Steps that the kernel carries out, as netlink requests, files and frames. Blocking.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use model::{IfName, Owner, Rule};
use netlink::{Announced, BatchError, Errno, LinkChange, LinkRef, Netns, Outcome, Probed, Request, Socket};
use planner::step::{LinkSet, Macvlan};
use planner::{Ns, Step};

use crate::error::StepError;
use crate::exec::{Done, Failed, Place, in_batches, place};

/// A veth or macvlan has carrier within milliseconds of being up. Where the parent has none, waiting longer would
/// only make the caller wait: `arp_notify` and `ndisc_notify` make the kernel announce when it comes.
const CARRIER_WAIT: Duration = Duration::from_secs(1);

/// Every kernel with IPv6 has it in each namespace, and none without (also where `ipv6.disable=1` was given at boot).
const IPV6_PROBE: &str = "net/ipv6/conf/all/disable_ipv6";

/// Whether a sysctl of IPv6 could not be written because there is no IPv6 at all. What it is to prevent or allow cannot happen.
fn is_without_ipv6<T>(key: &str, e: &netlink::Error, probe: impl FnOnce() -> Result<T, netlink::Error>) -> bool {
    let absent = |e: &netlink::Error| matches!(e, netlink::Error::Sysctl { source, .. } if source.kind() == ErrorKind::NotFound);
    key.replace('.', "/").starts_with("net/ipv6/") && absent(e) && probe().is_err_and(|e| absent(&e))
}

#[derive(Debug)]
pub(super) struct Kernel<'a> {
    pub host_netns: &'a Netns,
    pub host: &'a Socket,
    pub pod: Option<&'a Netns>,
}

impl Kernel<'_> {
    /// Steps of the kernel's. Those in the pod are quickest on a thread that is inside the pod's namespace.
    pub fn carry_out(&self, run: &[Step]) -> Result<Vec<Done>, Failed> {
        in_batches(run, |batch| match batch {
            [step @ (Step::SetSysctl { .. } | Step::SetTxChecksum { .. } | Step::Probe { .. } | Step::Announce { .. })] => {
                match self.alone(step) {
                    Ok(done) => Ok(vec![done]),
                    Err(cause) => Err(Failed { at: 0, cause, changed: vec![false] }),
                }
            }
            [Step::AddMacvlan(m)] => self.add_macvlan(m, batch),
            _ => self.batch(batch),
        })
    }

    /// Before Linux 6.15 a macvlan on a parent in another namespace is registered there first and moved then (`link_net` in
    /// `rtnl_newlink_create`, net/core/rtnetlink.c). A link of the host's that has the name is in its way, as a NIC `eth0` is in
    /// that of every pod's `eth0`; so it comes in under a name that only this attachment has, and gets its own in the pod.
    fn add_macvlan(&self, m: &Macvlan, alone: &[Step]) -> Result<Vec<Done>, Failed> {
        let failed = match self.batch(alone) {
            Err(failed) if failed.cause.errno() == Some(Errno::EEXIST) && m.parent_ns == Ns::Host => failed,
            ended => return ended,
        };
        let (Ok(pod), Some(owner)) = (self.socket(Ns::Pod), Owner::from_alias(&m.alias)) else { return Err(failed) };
        if !matches!(pod.link(&m.name), Ok(None)) {
            return Err(failed);
        }
        let passing = owner.attachment.link_name("mv");
        let drop_it = || pod.batch(&[Request::DelLink(LinkRef::Name(passing.clone()))]);
        // One of a life that was killed halfway.
        let _ = drop_it();
        let come_in = || {
            self.batch(&[Step::AddMacvlan(Macvlan { name: passing.clone(), ..m.clone() })]).map_err(|f| f.cause)?;
            let index = pod.link(&passing)?.ok_or_else(|| netlink::Error::NoLink(passing.to_string()))?.index;
            let rename = LinkChange { rename: Some(m.name.clone()), ..LinkChange::default() };
            pod.batch(&[Request::SetLink { link: LinkRef::Index(index), change: rename }]).map_err(refusal)
        };
        come_in().map(|()| vec![Done::Changed]).map_err(|cause| {
            if let Err(e) = drop_it() {
                tracing::debug!(link = %passing, error = ?e, "not deleted");
            }
            Failed { at: 0, cause, changed: vec![false] }
        })
    }

    fn alone(&self, step: &Step) -> Result<Done, StepError> {
        match step {
            Step::SetSysctl { ns, key, value, .. } => {
                let netns = Some(self.netns(*ns)?);
                if let Err(e) = netlink::sysctl::write(netns, key, value) {
                    let probe = || netlink::sysctl::read(netns, IPV6_PROBE);
                    if !is_without_ipv6(key, &e, probe) {
                        return Err(e.into());
                    }
                    tracing::debug!(key, "not set: this kernel has no ipv6");
                    return Ok(Done::AlreadySo);
                }
            }
            Step::SetTxChecksum { ns, dev, on } => {
                if !netlink::set_tx_checksum(Some(self.netns(*ns)?), dev, *on)? {
                    return Ok(Done::AlreadySo);
                }
            }
            Step::Probe { ns, dev, ask } => {
                let ask = netlink::Probe { unused: ask.unused.clone(), gateways: ask.gateways.clone() };
                match netlink::probe(Some(self.netns(*ns)?), dev, &ask, CARRIER_WAIT)? {
                    Probed::Clear => {}
                    Probed::InUse(ip, mac) => return Err(StepError::Duplicate { ip, mac }),
                    Probed::Silent(gateway) => return Err(StepError::GatewaySilent(gateway)),
                    Probed::NoCarrier => return Err(StepError::NoCarrier),
                }
                return Ok(Done::AlreadySo);
            }
            Step::Announce { ns, dev, ips } => {
                if netlink::announce(Some(self.netns(*ns)?), dev, ips, CARRIER_WAIT)? == Announced::NoCarrier {
                    tracing::warn!(%dev, "not announced: the interface has no carrier");
                }
            }
            _ => unreachable!("`carry_out` sends only these here"),
        }
        Ok(Done::Changed)
    }

    fn netns(&self, ns: Ns) -> Result<&Netns, StepError> {
        match ns {
            Ns::Host => Ok(self.host_netns),
            Ns::Pod => self.pod.ok_or(StepError::NoPod),
        }
    }

    fn socket(&self, ns: Ns) -> Result<&Socket, StepError> {
        match ns {
            Ns::Host => Ok(self.host),
            Ns::Pod => Ok(self.pod.ok_or(StepError::NoPod)?.socket()?),
        }
    }

    /// One batch, but for the marks of links that it makes.
    fn batch(&self, run: &[Step]) -> Result<Vec<Done>, Failed> {
        let mut names = Names::default();
        let mut requests = Vec::new();
        // For each step what is known without asking the kernel, and how many requests it has.
        let mut shares = Vec::with_capacity(run.len());
        let mut socket = None;
        for (at, step) in run.iter().enumerate() {
            let ready = self.socket(batch_ns(step)).and_then(|s| {
                socket = Some(s);
                self.requests(s, step, &mut names)
            });
            match ready {
                Ok(Some(asked)) => {
                    shares.push(asked.len());
                    requests.extend(asked);
                }
                Ok(None) => shares.push(0),
                // Nothing was sent yet; so of the whole run nothing is done.
                Err(cause) => return Err(Failed { at, cause, changed: vec![false; run.len()] }),
            }
        }
        let Some(socket) = socket else { return Ok(Vec::new()) };
        let outcomes = match socket.batch(&requests) {
            Ok(()) => vec![Outcome::Done; requests.len()],
            Err(BatchError { outcomes, broken }) => {
                if let Some(e) = &broken {
                    tracing::warn!(error = %e, "a netlink exchange broke off");
                }
                outcomes
            }
        };
        let mut done = Vec::with_capacity(run.len());
        let mut changed = vec![false; run.len()];
        let mut failed = None;
        let mut rest = &outcomes[..];
        for (at, (step, share)) in run.iter().zip(&shares).enumerate() {
            let (of_step, behind) = rest.split_at(*share);
            rest = behind;
            let mut now = Done::AlreadySo;
            for outcome in of_step {
                match outcome {
                    Outcome::Done => now = Done::Changed,
                    Outcome::Refused(k) if already_so(step, k.errno) => {}
                    Outcome::Refused(k) => {
                        failed.get_or_insert((at, StepError::Netlink(k.clone().into())));
                    }
                    Outcome::NotTried => {}
                    Outcome::Unknown => {
                        now = Done::Changed;
                        let lost = netlink::Error::Receive { source: std::io::ErrorKind::TimedOut.into() };
                        failed.get_or_insert((at, lost.into()));
                    }
                }
            }
            changed[at] = now == Done::Changed;
            done.push(now);
        }
        if failed.is_none() {
            failed = self.mark(run).err();
        }
        match failed {
            None => Ok(done),
            Some((at, cause)) => Err(Failed { at, cause, changed }),
        }
    }

    /// The kernel sets no alias at birth. The mark comes right after, not in the same exchange: there the kernel would carry it
    /// out after a birth that it refused as well, on whatever link has the name.
    fn mark(&self, run: &[Step]) -> Result<(), (usize, StepError)> {
        let set = |ns, name: &IfName, text: &str| {
            let request = Request::SetLink { link: LinkRef::Name(name.clone()), change: alias(text) };
            self.socket(ns)?.batch(&[request]).map_err(refusal)
        };
        for (at, step) in run.iter().enumerate() {
            let marked = match step {
                Step::AddMacvlan(m) => set(Ns::Pod, &m.name, &m.alias),
                Step::AddVeth(v) => set(Ns::Pod, &v.pod_name, &v.alias).and_then(|()| set(Ns::Host, &v.host_name, &v.alias)),
                _ => Ok(()),
            };
            marked.map_err(|cause| (at, cause))?;
        }
        Ok(())
    }

    /// None where there is nothing to ask for: it is so already.
    fn requests<'a>(&'a self, socket: &Socket, step: &Step, names: &mut Names) -> Result<Option<Vec<Request<'a>>>, StepError> {
        use Step::*;
        Ok(Some(match step {
            AddMacvlan(m) => {
                let (parent_socket, parent_netns) = match m.parent_ns {
                    Ns::Host => (self.host, Some(socket.netns_id_of(self.host_netns)?)),
                    Ns::Pod => (socket, None),
                };
                let parent = parent_socket.link(&m.parent)?.ok_or_else(|| netlink::Error::NoLink(m.parent.to_string()))?.index;
                vec![Request::AddMacvlan {
                    name: m.name.clone(),
                    parent,
                    parent_netns,
                    mode: m.mode,
                    mac: m.mac,
                    mtu: m.mtu.map(model::Mtu::get),
                    bc_queue_len: m.bc_queue_len,
                }]
            }
            AddVeth(v) => {
                vec![Request::AddVeth {
                    name: v.pod_name.clone(),
                    mac: v.pod_mac,
                    mtu: v.mtu.map(model::Mtu::get),
                    peer: v.host_name.clone(),
                    peer_mac: v.host_mac,
                    peer_netns: std::os::fd::AsFd::as_fd(self.host_netns),
                }]
            }
            DelLink { name, .. } => vec![Request::DelLink(LinkRef::Name(name.clone()))],
            SetLink { name, set, .. } => {
                changes(set).map(|change| Request::SetLink { link: LinkRef::Name(name.clone()), change }).collect()
            }
            AddAddr { dev, addr, nodad, .. } => {
                vec![Request::AddAddr { index: names.index(socket, dev)?, addr: *addr, nodad: *nodad, no_prefix_route: false }]
            }
            AddRoute { route, .. } => vec![Request::AddRoute { index: names.index(socket, &route.dev)?, route: route.clone() }],
            AddRule { rule, .. } => vec![Request::AddRule(rule.clone())],
            AddNeighbour { dev, ip, mac, .. } => {
                vec![Request::AddNeighbour { index: names.index(socket, dev)?, ip: *ip, mac: *mac }]
            }
            DelAddr { dev, addr, .. } => match names.find(socket, dev)? {
                Some(index) => vec![Request::DelAddr { index, addr: *addr }],
                None => return Ok(None),
            },
            DelRoute { route, .. } => match names.find(socket, &route.dev)? {
                Some(index) => vec![Request::DelRoute { index, route: route.clone() }],
                None => return Ok(None),
            },
            // The kernel deletes the first rule that agrees in what is given; so one that has more selectors could go for
            // one that is not there.
            DelRule { rule, .. } => match names.rules(socket)?.contains(rule) {
                true => vec![Request::DelRule(rule.clone())],
                false => return Ok(None),
            },
            DelNeighbour { dev, ip, .. } => match names.find(socket, dev)? {
                Some(index) => vec![Request::DelNeighbour { index, ip: *ip }],
                None => return Ok(None),
            },
            SetSysctl { .. } | SetTxChecksum { .. } | Probe { .. } | Announce { .. } => {
                unreachable!("`batches` puts these alone")
            }
            AddBridge(_) | DelBridge(_) | SetBridge { .. } | AddPort { .. } | DelPort { .. } | SetPort { .. } => {
                unreachable!("`runs` keeps OVSDB apart")
            }
        }))
    }
}

/// Whether the step is done by a thread inside the pod's namespace, not just by a socket of it.
pub(super) fn is_inside(step: &Step) -> bool {
    match step {
        Step::SetSysctl { ns, .. } | Step::SetTxChecksum { ns, .. } | Step::Probe { ns, .. } | Step::Announce { ns, .. } => {
            *ns == Ns::Pod
        }
        _ => false,
    }
}

/// The namespace of a run's batch; `exec` puts only steps of one into a run.
fn batch_ns(step: &Step) -> Ns {
    match place(step) {
        Place::Netlink(ns) => ns,
        Place::Ovsdb | Place::Alone => Ns::Pod,
    }
}

fn alias(alias: &str) -> LinkChange<'static> {
    LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() }
}

/// One field each: the kernel sets several one after the other and stops at the first that fails, so that one request
/// with several fields could be carried out by half. Up comes last.
fn changes(set: &LinkSet) -> impl Iterator<Item = LinkChange<'static>> {
    let none = LinkChange::default;
    [
        set.mac.map(|mac| LinkChange { mac: Some(mac), ..none() }),
        set.mtu.map(|mtu| LinkChange { mtu: Some(mtu), ..none() }),
        set.tx_queue_len.map(|q| LinkChange { tx_queue_len: Some(q), ..none() }),
        set.alias.clone().map(|a| LinkChange { alias: Some(a), ..none() }),
        set.up.map(|up| LinkChange { up: Some(up), ..none() }),
    ]
    .into_iter()
    .flatten()
}

/// Whether this refusal means that it is already as the step wants it.
fn already_so(step: &Step, errno: Errno) -> bool {
    use Step::*;
    match step {
        AddAddr { .. } | AddRule { .. } => errno == Errno::EEXIST,
        DelLink { .. } => errno == Errno::ENODEV,
        DelAddr { .. } => matches!(errno, Errno::EADDRNOTAVAIL | Errno::ENODEV),
        DelRoute { .. } => matches!(errno, Errno::ESRCH | Errno::ENODEV),
        DelRule { .. } => errno == Errno::ENOENT,
        DelNeighbour { .. } => matches!(errno, Errno::ENOENT | Errno::ENODEV),
        _ => false,
    }
}

fn refusal(e: BatchError) -> StepError {
    let refused = e.outcomes.into_iter().find_map(|o| match o {
        Outcome::Refused(k) => Some(netlink::Error::from(k)),
        _ => None,
    });
    refused.or(e.broken).unwrap_or(netlink::Error::Malformed("a batch failed without saying where")).into()
}

/// What was looked up for this batch.
#[derive(Default)]
struct Names {
    indexes: BTreeMap<IfName, u32>,
    rules: Option<Vec<Rule>>,
}

impl Names {
    fn find(&mut self, socket: &Socket, name: &IfName) -> Result<Option<u32>, netlink::Error> {
        if let Some(index) = self.indexes.get(name) {
            return Ok(Some(*index));
        }
        let found = socket.link(name)?.map(|l| l.index);
        if let Some(index) = found {
            self.indexes.insert(name.clone(), index);
        }
        Ok(found)
    }

    fn index(&mut self, socket: &Socket, name: &IfName) -> Result<u32, netlink::Error> {
        self.find(socket, name)?.ok_or_else(|| netlink::Error::NoLink(name.to_string()))
    }

    fn rules(&mut self, socket: &Socket) -> Result<&[Rule], netlink::Error> {
        match &mut self.rules {
            Some(rules) => Ok(rules),
            empty => Ok(empty.insert(socket.rules()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_of_ipv6_counts_as_set_only_where_there_is_no_ipv6() {
        let failed = |kind: ErrorKind| netlink::Error::Sysctl { act: "write", key: "k".into(), source: kind.into() };
        let (absent, denied) = (failed(ErrorKind::NotFound), failed(ErrorKind::PermissionDenied));
        let none = || Err::<String, _>(failed(ErrorKind::NotFound));
        let there = || Ok("0".to_owned());
        for key in ["net/ipv6/conf/eth0.100/accept_ra", "net.ipv6.conf.all.forwarding"] {
            assert!(is_without_ipv6(key, &absent, none), "{key}");
            // The interface is not there, or it may not be written: an error.
            assert!(!is_without_ipv6(key, &absent, there), "{key}");
            assert!(!is_without_ipv6(key, &denied, none), "{key}");
            assert!(!is_without_ipv6(key, &absent, || Err::<String, _>(failed(ErrorKind::PermissionDenied))), "{key}");
        }
        assert!(!is_without_ipv6("net/ipv4/ip_forward", &absent, none));
    }

    #[test]
    fn this_kernel_answers_the_probe_as_it_has_ipv6() {
        let has = std::path::Path::new("/proc/net/if_inet6").exists();
        assert_eq!(netlink::sysctl::read(None, IPV6_PROBE).is_ok(), has);
    }
}
