//! Why a host could not be looked at or changed.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use model::MacAddr;
use netlink::Errno;
use planner::Step;

/// Why the host could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("failed to look at the {place} network namespace: {}", chain(.cause))]
    Netlink { place: &'static str, cause: netlink::Error },
    #[error("open vswitch at {endpoint} does not answer: {cause}")]
    Ovs { endpoint: String, cause: ovsdb::Error },
    #[error("a look at the host was cut short: {0}")]
    Task(String),
}

/// Why a plan was not carried out, and what is left of it. One line says all of it, since it ends up as a CNI error or a
/// condition's message.
#[derive(Debug)]
pub struct ApplyError {
    /// Position in the plan, from 0.
    pub index: usize,
    pub step: Box<Step>,
    pub cause: Box<StepError>,
    pub undo: Undo,
}

/// Whether the host is as it was before.
#[derive(Debug)]
pub enum Undo {
    Complete,
    /// These inverse steps failed; all others were carried out.
    Incomplete(Vec<(Step, StepError)>),
}

impl ApplyError {
    pub fn undone(&self) -> bool {
        matches!(self.undo, Undo::Complete)
    }

    /// The likely cause, where the error has one.
    pub fn likely(&self) -> Option<&'static str> {
        likely(&self.step, &self.cause)
    }

    /// A fixed word for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        self.cause.reason()
    }
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {}", self.step, chain(&*self.cause))?;
        if let Some(likely) = self.likely() {
            write!(f, "; {likely}")?;
        }
        match &self.undo {
            Undo::Complete => Ok(()),
            Undo::Incomplete(failed) => {
                write!(f, "; and could not take back everything:")?;
                for (i, (step, cause)) in failed.iter().enumerate() {
                    write!(f, "{} failed to {step}: {}", if i == 0 { "" } else { ";" }, chain(cause))?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ApplyError {}

/// Why one step was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error("no network namespace of a pod was given")]
    NoPod,
    #[error("this host has no open vswitch")]
    NoOvs,
    #[error("open vswitch does not answer: {0}")]
    OvsDown(ovsdb::Error),
    #[error("bridge {0} does not exist")]
    NoBridge(String),
    #[error("bridge {0} exists already")]
    BridgeExists(String),
    #[error("port {0} does not exist")]
    NoPort(String),
    #[error("port {port} is on bridge {bridge} already")]
    PortExists { port: String, bridge: String },
    #[error("interface {interface} belongs to port {port} of bridge {bridge} already")]
    InterfaceTaken { interface: String, port: String, bridge: String },
    #[error("open vswitch was changed by someone else at the same moment")]
    OvsChanged,
    #[error("open vswitch refused it: {0}")]
    Ovs(ovsdb::Error),
    /// `Interface.error`, or `ofport` -1.
    #[error("open vswitch could not use interface {interface}: {error}")]
    Interface { interface: String, error: String },
    #[error("interface {0} was removed from open vswitch by someone else")]
    InterfaceGone(String),
    #[error("ovs-vswitchd gave interface {interface} no ofport within {waited_s} s")]
    NoOfport { interface: String, waited_s: u64 },
    #[error("somebody with the hardware address {mac} uses {ip} already")]
    Duplicate { ip: IpAddr, mac: MacAddr },
    #[error("gateway {0} does not answer on this segment")]
    GatewaySilent(IpAddr),
    #[error("the interface has no carrier to ask by")]
    NoCarrier,
    #[error("the step was cut short: {0}")]
    Task(String),
    /// Only where a test asked for it.
    #[error("made to fail by a test")]
    Injected,
}

impl StepError {
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Netlink(e) => e.errno(),
            _ => None,
        }
    }

    pub fn reason(&self) -> &'static str {
        match self {
            Self::Netlink(_) => "KernelRefused",
            Self::NoPod => "NoNetns",
            Self::NoOvs => "NoOpenVSwitch",
            Self::OvsDown(_) => "OpenVSwitchDown",
            Self::NoBridge(_) => "BridgeMissing",
            Self::NoPort(_) => "PortMissing",
            Self::BridgeExists(_) | Self::PortExists { .. } | Self::InterfaceTaken { .. } => "Conflict",
            Self::OvsChanged => "Changed",
            Self::Ovs(_) => "OpenVSwitchRefused",
            Self::Interface { .. } | Self::InterfaceGone(_) | Self::NoOfport { .. } => "InterfaceFailed",
            Self::Duplicate { .. } => "DuplicateAddress",
            Self::GatewaySilent(_) => "GatewaySilent",
            Self::NoCarrier => "NoCarrier",
            Self::Task(_) => "Aborted",
            Self::Injected => "Injected",
        }
    }

    pub(crate) fn no_ofport(interface: String, waited: Duration) -> Self {
        Self::NoOfport { interface, waited_s: waited.as_secs() }
    }
}

/// An error with its sources, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |e| e.source()).fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// What is mostly behind it. Only where experience says so; the kernel's own sentence comes first in any case.
fn likely(step: &Step, cause: &StepError) -> Option<&'static str> {
    use Step::*;
    Some(match (step, cause, cause.errno()) {
        (AddMacvlan(_) | AddVeth(_), _, Some(Errno::EEXIST)) => "an interface of that name exists already",
        (AddMacvlan(_), _, Some(Errno::EBUSY)) => {
            "the parent is in a bridge or bond, or another macvlan on it is in mode passthru"
        }
        (AddMacvlan(_), _, Some(Errno::EINVAL)) => "the parent admits no macvlan in this mode, or the mtu is above the parent's",
        (AddMacvlan(_) | AddVeth(_), _, Some(Errno::EOPNOTSUPP)) => "the kernel lacks the driver (module) for this kind of link",
        (AddMacvlan(_) | AddVeth(_) | SetLink { .. }, _, Some(Errno::EADDRNOTAVAIL)) => {
            "the hardware address is not an individual one"
        }
        (AddRoute { .. }, _, Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL)) => {
            "the next hop is in none of the interface's networks, or the interface is down"
        }
        (AddRoute { .. }, _, Some(Errno::EEXIST)) => "the table has a route to that destination with that metric",
        (AddRoute { .. } | AddAddr { .. }, _, Some(Errno::ENETDOWN)) => "the interface is down",
        (AddAddr { .. }, _, Some(Errno::EACCES | Errno::EOPNOTSUPP)) => {
            "ipv6 is disabled on the interface (net.ipv6.conf.*.disable_ipv6)"
        }
        (_, _, Some(Errno::EPERM)) => "the process lacks CAP_NET_ADMIN or CAP_SYS_ADMIN",
        (_, StepError::NoOfport { .. }, _) => "ovs-vswitchd is not running or hangs",
        (_, StepError::GatewaySilent(_), _) => "the gateway is down, or the interface is in another VLAN than it",
        (_, StepError::NoCarrier, _) => "the parent's cable or its switch port is down",
        (_, StepError::NoOvs | StepError::OvsDown(_), _) => "openvswitch is not installed or not running on this host",
        _ => return None,
    })
}
