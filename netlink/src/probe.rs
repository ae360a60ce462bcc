//! Asking the segment whether somebody uses an address already (RFC 5227 section 2.1, RFC 4862 section 5.4), and whether a
//! gateway is there (RFC 826, RFC 4861 section 7.2). Does not know what follows from the answers.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use model::{IfName, MacAddr};

use crate::frame::{self, Heard};
use crate::segment::{self, Segment};
use crate::{Error, Netns, Socket};

/// As in RFC 5227. Its waits of seconds (9 at the most) are for hosts that start together after a power cut, on ports that a
/// switch has not opened yet. A pod is one more address behind a port that is in use, and our own pods are kept apart by their
/// leases; who is left are strangers that are up, and those answer within milliseconds. A third of them may be lost.
const PROBES: u32 = 3;
/// So a host that needs this long is still heard after the last one, and one that needs three times as long after the first.
const PROBE_GAP: Duration = Duration::from_millis(200);
/// A router's control plane is slower than a host, and only one that does not answer costs the whole time.
const GATEWAY_QUESTIONS: u32 = 3;
const GATEWAY_GAP: Duration = Duration::from_millis(500);

/// What an interface is to find out before its addresses are used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// Addresses that nobody else may use.
    pub unused: Vec<IpAddr>,
    /// Gateways that have to answer, each with the address that asks, which is the interface's own.
    pub gateways: Vec<(IpAddr, IpAddr)>,
}

/// What the segment said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    Clear,
    /// Somebody with this hardware address uses the address, or is about to.
    InUse(IpAddr, MacAddr),
    /// This gateway did not answer.
    Silent(IpAddr),
    /// Nothing could be asked.
    NoCarrier,
}

/// Asks by `dev`, which need not have the addresses, as soon as it has carrier; waits for that at most `wait`. Addresses take
/// 0.6 s together, gateways as long as they need and at most 1.5 s together.
pub fn probe(netns: Option<&Netns>, dev: &IfName, ask: &Probe, wait: Duration) -> Result<Probed, Error> {
    let until = Instant::now() + wait;
    let opened = match netns {
        Some(n) => n.enter(|| Open::new(n.socket()?, dev, ask, until))?,
        None => Open::new(&Socket::open()?, dev, ask, until),
    }?;
    match opened {
        Some(open) => open.ask(ask),
        None => Ok(Probed::NoCarrier),
    }
}

/// Sockets that were opened in the interface's namespace; they are used from anywhere.
struct Open {
    segment: Segment,
    mac: MacAddr,
    /// Whoever else is about to use an address asks the group of those who have it.
    _groups: Option<UdpSocket>,
}

impl Open {
    fn new(links: &Socket, dev: &IfName, ask: &Probe, until: Instant) -> Result<Option<Self>, Error> {
        let link = links.link(dev)?.ok_or_else(|| Error::NoLink(dev.to_string()))?;
        let Some((index, mac)) = segment::carrier(links, link, dev, until)? else { return Ok(None) };
        let segment = Segment::to_listen(index)?;
        let v6 = ask.unused.iter().filter_map(|ip| match ip {
            IpAddr::V6(ip) => Some(frame::solicited_node(*ip)),
            IpAddr::V4(_) => None,
        });
        let groups = Self::join(index, v6).map_err(|source| Error::Join { dev: dev.to_string(), source })?;
        Ok(Some(Self { segment, mac, _groups: groups }))
    }

    fn join(index: u32, groups: impl Iterator<Item = Ipv6Addr>) -> std::io::Result<Option<UdpSocket>> {
        let mut socket = None;
        for group in groups {
            let socket = match &mut socket {
                Some(s) => s,
                none => none.insert(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?),
            };
            match socket.join_multicast_v6(&group, index) {
                // Two addresses may have one group.
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
                joined => joined?,
            }
        }
        Ok(socket)
    }

    fn ask(&self, ask: &Probe) -> Result<Probed, Error> {
        if !ask.unused.is_empty() {
            for _ in 0..PROBES {
                for ip in &ask.unused {
                    self.segment.send(&frame::question(self.mac, None, *ip))?;
                }
                // Nothing of ours says yet that it uses the address; so who says it is another, whatever its hardware address.
                let used = |f: &[u8]| match frame::read(f)? {
                    Heard::Uses(ip, mac) => ask.unused.contains(&ip).then_some((ip, mac)),
                    Heard::Probes(ip, mac) => (ask.unused.contains(&ip) && mac != self.mac).then_some((ip, mac)),
                };
                if let Some((ip, mac)) = self.segment.listen(Instant::now() + PROBE_GAP, used)? {
                    return Ok(Probed::InUse(ip, mac));
                }
            }
        }
        let mut silent = ask.gateways.clone();
        for _ in 0..GATEWAY_QUESTIONS {
            if silent.is_empty() {
                break;
            }
            for (gateway, from) in &silent {
                self.segment.send(&frame::question(self.mac, Some(*from), *gateway))?;
            }
            let answered = |f: &[u8]| match frame::read(f)? {
                // A late answer to a probe.
                Heard::Uses(ip, mac) if ask.unused.contains(&ip) && mac != self.mac => Some(Probed::InUse(ip, mac)),
                Heard::Uses(ip, mac) if mac != self.mac => {
                    silent.retain(|(gateway, _)| *gateway != ip);
                    silent.is_empty().then_some(Probed::Clear)
                }
                _ => None,
            };
            if let Some(Probed::InUse(ip, mac)) = self.segment.listen(Instant::now() + GATEWAY_GAP, answered)? {
                return Ok(Probed::InUse(ip, mac));
            }
        }
        Ok(silent.first().map_or(Probed::Clear, |(gateway, _)| Probed::Silent(*gateway)))
    }
}
