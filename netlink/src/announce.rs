//! Telling the segment who has an address now: gratuitous ARP (RFC 5227 section 3: a request whose sender and target are the
//! address) and the unsolicited neighbour advertisement (RFC 4861 section 7.2.6). Does not know who asks, or why.
//!
//! The first time the kernel sends them: with `arp_notify` and `ndisc_notify` it does when a hardware address is set
//! (Documentation/networking/ip-sysctl.rst), also to what it was. Frames of our own need a packet socket, and closing one waits
//! for a grace period of RCU (`packet_release` in af_packet.c): 16 ms measured, more than all the rest of an ADD. But setting
//! a hardware address makes the kernel forget the link's neighbours, which a link that is in use already must not feel: so
//! the repetitions, for which nobody waits, are frames of our own.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use model::IfName;

use crate::segment::{self, Segment};
use crate::{Error, LinkChange, LinkRef, Netns, Outcome, Request, Socket, frame, sysctl};

/// A frame sent without carrier is lost silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    Sent,
    /// No carrier came in time; nothing was sent. The kernel announces when the link is set up again.
    NoCarrier,
    /// The link, its carrier or its addresses are gone; nothing was sent.
    NotThere,
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
    let link = links.link(dev)?.ok_or_else(|| Error::NoLink(dev.to_string()))?;
    // Before the wait: where no carrier comes in time, the kernel is told all the same.
    if ips.iter().any(IpAddr::is_ipv4) {
        sysctl::write(None, &format!("net/ipv4/conf/{dev}/arp_notify"), "1")?;
    }
    if ips.iter().any(IpAddr::is_ipv6) {
        sysctl::write(None, &format!("net/ipv6/conf/{dev}/ndisc_notify"), "1")?;
    }
    let Some((index, mac)) = segment::carrier(links, link, dev, until)? else { return Ok(Announced::NoCarrier) };
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

/// Announces those of `ips` that `dev` has now, once more, by frames of our own: nobody's neighbours are forgotten, and nothing
/// else of the namespace changes. Takes some 20 ms, almost all of it the wait for the packet socket's end.
pub fn announce_again(netns: Option<&Netns>, dev: &IfName, ips: &[IpAddr]) -> Result<Announced, Error> {
    match netns {
        Some(n) => n.enter(|| again(n.socket()?, dev, ips))?,
        None => again(&Socket::open()?, dev, ips),
    }
}

fn again(now: &Socket, dev: &IfName, ips: &[IpAddr]) -> Result<Announced, Error> {
    let Some(link) = now.link(dev)?.filter(|l| l.up && l.carrier) else { return Ok(Announced::NotThere) };
    let mac = link.mac.ok_or_else(|| Error::NotEthernet(dev.to_string()))?;
    // RFC 4862 section 5.4: what is tentative is not ours yet.
    let usable: Vec<IpAddr> =
        now.addresses_of(&link)?.iter().filter(|a| !a.tentative && !a.dad_failed).map(|a| a.addr.ip()).collect();
    let mut still = ips.iter().filter(|ip| usable.contains(ip)).peekable();
    if still.peek().is_none() {
        return Ok(Announced::NotThere);
    }
    let segment = Segment::to_tell(link.index)?;
    for ip in still {
        segment.send(&frame::announcement(mac, *ip))?;
    }
    Ok(Announced::Sent)
}
