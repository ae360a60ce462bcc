//! Telling the segment who has an address now: gratuitous ARP (RFC 5227 section 3: a request whose sender and target are the
//! address) and the unsolicited neighbour advertisement (RFC 4861 section 7.2.6). Does not know who asks, or why.
//!
//! The kernel sends them: with `arp_notify` and `ndisc_notify` it does when a hardware address is set
//! (Documentation/networking/ip-sysctl.rst), also to what it was. Frames of our own would need a packet socket, and closing
//! one waits for a grace period of RCU (`packet_release` in af_packet.c): 16 ms measured, more than all the rest of an ADD.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use model::IfName;
use model::observed::Link;

use crate::{Error, LinkChange, LinkRef, Monitor, Netns, Outcome, Request, Socket, sysctl};

/// A frame sent without carrier is lost silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    Sent,
    /// No carrier came in time; nothing was sent. The kernel announces when the link is set up again.
    NoCarrier,
}

/// Announces the addresses of `dev` in the families of `ips`, as soon as the link has carrier; waits for that at most `wait`.
/// A tentative IPv6 address is left out (RFC 4862 section 5.4). The kernel forgets the link's neighbours on the way.
pub fn announce(netns: Option<&Netns>, dev: &IfName, ips: &[IpAddr], wait: Duration) -> Result<Announced, Error> {
    match netns {
        Some(n) => n.enter(|| here(n.socket()?, dev, ips, wait))?,
        None => here(&Socket::open()?, dev, ips, wait),
    }
}

fn here(links: &Socket, dev: &IfName, ips: &[IpAddr], wait: Duration) -> Result<Announced, Error> {
    let until = Instant::now() + wait;
    let look = || links.link(dev)?.ok_or_else(|| Error::NoLink(dev.to_string()));
    let mut link = look()?;
    // Before the wait: where no carrier comes in time, the kernel is told all the same.
    if ips.iter().any(IpAddr::is_ipv4) {
        sysctl::write(None, &format!("net/ipv4/conf/{dev}/arp_notify"), "1")?;
    }
    if ips.iter().any(IpAddr::is_ipv6) {
        sysctl::write(None, &format!("net/ipv6/conf/{dev}/ndisc_notify"), "1")?;
    }
    let has_carrier = |l: &Link| l.up && l.carrier;
    if !has_carrier(&link) {
        // Opened before the next look, so that no change falls between the two.
        let monitor = Monitor::links()?;
        link = look()?;
        while !has_carrier(&link) {
            if !monitor.wait(until)? {
                return Ok(Announced::NoCarrier);
            }
            link = look()?;
        }
    }
    let (index, mac) = (link.index, link.mac.ok_or_else(|| Error::NotEthernet(dev.to_string()))?);
    let same = LinkChange { mac: Some(mac), ..LinkChange::default() };
    links.batch(&[Request::SetLink { link: LinkRef::Index(index), change: same }]).map_err(|e| {
        let refused = e.outcomes.into_iter().find_map(|o| match o {
            Outcome::Refused(k) => Some(Error::from(k)),
            _ => None,
        });
        refused.or(e.broken).unwrap_or(Error::Malformed("a request failed without saying why"))
    })?;
    Ok(Announced::Sent)
}
