//! Why the kernel did not do something. Knows no plan: who asked adds what it was for.

use std::fmt;
use std::io;
use std::path::PathBuf;

pub use nix::errno::Errno;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to open network namespace {path:?}")]
    OpenNetns { path: PathBuf, source: io::Error },
    #[error("{path:?} is not a network namespace; the namespace may be gone and only its file left")]
    NotNetns { path: PathBuf },
    #[error("failed to enter network namespace {netns}")]
    Enter { netns: String, source: io::Error },
    #[error("failed to open a netlink socket")]
    Open { source: io::Error },
    #[error("failed to send a request to the kernel")]
    Send { source: io::Error },
    #[error("failed to read the kernel's answer")]
    Receive { source: io::Error },
    #[error("the kernel's answer is malformed: {0}")]
    Malformed(&'static str),
    #[error("a dump was made inconsistent by concurrent changes {0} times in a row")]
    Interrupted(u32),
    #[error(transparent)]
    Refused(#[from] KernelError),
    #[error("link {0} does not exist")]
    NoLink(String),
    #[error("sysctl key {key:?} is not a plain path below net/, the only tree that each network namespace has for itself")]
    SysctlKey { key: String },
    #[error("failed to {act} sysctl {key}")]
    Sysctl { act: &'static str, key: String, source: io::Error },
    #[error("transmit checksum offload of {dev} stayed {state} although the kernel accepted the request", state = if *.asked_on { "off" } else { "on" })]
    ChecksumUnchanged { dev: String, asked_on: bool },
    #[error("link {0} has no Ethernet address to announce with")]
    NotEthernet(String),
    #[error("failed to open a packet socket")]
    OpenPacket { source: io::Error },
    #[error("failed to send a frame")]
    SendFrame { source: io::Error },
    #[error("failed to join the solicited-node groups of IPv6 addresses on {dev}")]
    Join { dev: String, source: io::Error },
}

impl Error {
    /// The kernel's number, where the kernel is what failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(k) => Some(k.errno),
            Self::OpenNetns { source, .. }
            | Self::Enter { source, .. }
            | Self::Open { source }
            | Self::Send { source }
            | Self::Receive { source }
            | Self::OpenPacket { source }
            | Self::SendFrame { source }
            | Self::Join { source, .. }
            | Self::Sysctl { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}

/// A negative acknowledgement, with the sentence that the kernel adds where it knows more than a number
/// (`NLMSGERR_ATTR_MSG`, linux/netlink.h).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    pub errno: Errno,
    pub text: Option<String>,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.errno.desc(), self.errno)?;
        match &self.text {
            Some(t) => write!(f, ": {t}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for KernelError {}

/// What became of one request of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Refused(KernelError),
    /// Never sent, because one before it was refused.
    NotTried,
    /// Sent, but the answer was lost; it may have been carried out.
    Unknown,
}

/// A batch of which at least one request was not carried out.
#[derive(Debug)]
pub struct BatchError {
    /// One for each request, in order. The kernel goes on after a refusal, so requests behind the first refused one may well
    /// have been carried out.
    pub outcomes: Vec<Outcome>,
    /// Set when not the kernel refused but the exchange with it failed.
    pub broken: Option<Error>,
}

impl BatchError {
    /// The first request that was not carried out (or may not have been).
    pub fn first(&self) -> usize {
        self.outcomes.iter().position(|o| *o != Outcome::Done).unwrap_or(0)
    }
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, of) = (self.first() + 1, self.outcomes.len());
        match (self.outcomes.get(n - 1), &self.broken) {
            (Some(Outcome::Refused(k)), _) => write!(f, "request {n} of {of} was refused: {k}"),
            (_, Some(e)) => write!(f, "request {n} of {of} was not answered: {e}"),
            (_, None) => write!(f, "request {n} of {of} was not answered"),
        }
    }
}

impl std::error::Error for BatchError {}
