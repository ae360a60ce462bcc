//! Telling the segment who has an address now: gratuitous ARP (RFC 5227 section 3: a request whose sender and target are the address) and the unsolicited neighbour advertisement (RFC 4861 section
//! 7.2.6). Frames are written here whole and sent raw, so that it works for an address that is still tentative.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use model::{IfName, MacAddr};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, bind, send, socket};

use crate::{Error, Monitor, Netns, Socket};

/// A frame sent without carrier is lost silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    Sent,
    /// No carrier came in time; nothing was sent.
    NoCarrier,
}

/// Announces every address from `dev`, once each, as soon as the link has carrier; waits for that at most `wait`.
pub fn announce(netns: Option<&Netns>, dev: &IfName, ips: &[IpAddr], wait: Duration) -> Result<Announced, Error> {
    let act = || here(dev, ips, wait);
    match netns {
        Some(n) => n.enter(act)?,
        None => act(),
    }
}

fn here(dev: &IfName, ips: &[IpAddr], wait: Duration) -> Result<Announced, Error> {
    // Opened before the first look, so that no change falls between the two.
    let monitor = Monitor::links()?;
    let links = Socket::open()?;
    let until = Instant::now() + wait;
    let mac = loop {
        let link = links.link(dev)?.ok_or_else(|| Error::NoLink(dev.to_string()))?;
        if link.up && link.carrier {
            break link.mac.ok_or_else(|| Error::NotEthernet(dev.to_string()))?;
        }
        if !monitor.wait(until)? {
            return Ok(Announced::NoCarrier);
        }
    };
    let failed = |e: nix::errno::Errno| Error::Announce { dev: dev.to_string(), source: e.into() };
    // Protocol 0: it sends and receives nothing.
    let packet = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    // The C library's list of interfaces holds each one's own `sockaddr_ll`; so none has to be put together by hand.
    let address = getifaddrs()
        .map_err(failed)?
        .filter(|i| i.interface_name == dev.as_str())
        .find_map(|i| i.address?.as_link_addr().copied())
        .ok_or_else(|| Error::NoLink(dev.to_string()))?;
    debug_assert_eq!(address.family(), Some(AddressFamily::Packet));
    bind(packet.as_raw_fd(), &address).map_err(failed)?;
    for ip in ips {
        let frame = match ip {
            IpAddr::V4(ip) => gratuitous_arp(mac, *ip),
            IpAddr::V6(ip) => unsolicited_na(mac, *ip),
        };
        send(packet.as_raw_fd(), &frame, MsgFlags::empty()).map_err(failed)?;
    }
    Ok(Announced::Sent)
}

/// Ethernet broadcast of an ARP request (RFC 826) for the address by its owner.
fn gratuitous_arp(mac: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    let mut f = Vec::with_capacity(60);
    f.extend([0xff; 6]);
    f.extend(mac.bytes());
    f.extend([0x08, 0x06]);
    // Ethernet, IPv4, 6, 4, request
    f.extend([0, 1, 0x08, 0, 6, 4, 0, 1]);
    f.extend(mac.bytes());
    f.extend(ip.octets());
    f.extend([0; 6]);
    f.extend(ip.octets());
    // The least Ethernet frame without its checksum; not every virtual device pads.
    f.resize(60, 0);
    f
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;

/// Neighbour advertisement (RFC 4861 section 4.4) to all nodes, with the override flag and the target's link-layer address.
fn unsolicited_na(mac: MacAddr, ip: Ipv6Addr) -> Vec<u8> {
    // Type 136, code 0, checksum; flags: not from a router, not solicited, override.
    let mut icmp = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    icmp.extend(ip.octets());
    // Option 2: target link-layer address, one unit of eight bytes.
    icmp.extend([2, 1]);
    icmp.extend(mac.bytes());
    let len = u16::try_from(icmp.len()).expect("32 bytes");
    let sum = checksum(ip, ALL_NODES, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut f = Vec::with_capacity(86);
    // RFC 2464 section 7: 33:33 and the last four bytes of the group.
    f.extend([0x33, 0x33, 0, 0, 0, 1]);
    f.extend(mac.bytes());
    f.extend([0x86, 0xdd]);
    f.extend([0x60, 0, 0, 0]);
    f.extend(len.to_be_bytes());
    // Hop limit 255: receivers drop any other, for it could have come through a router.
    f.extend([ICMPV6, 255]);
    f.extend(ip.octets());
    f.extend(ALL_NODES.octets());
    f.extend(icmp);
    f
}

/// RFC 1071 over the pseudo-header of RFC 8200 section 8.1 and the message.
fn checksum(src: Ipv6Addr, dst: Ipv6Addr, icmp: &[u8]) -> u16 {
    let len = u32::try_from(icmp.len()).expect("32 bytes").to_be_bytes();
    let whole = [&src.octets()[..], &dst.octets(), &len, &[0, 0, 0, ICMPV6], icmp].concat();
    let mut sum: u32 = whole.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr::from_bytes([0x0a, 0x58, 0x0a, 0x06, 0xd4, 0xca]);

    #[test]
    fn an_arp_announcement_has_the_address_twice() {
        let f = gratuitous_arp(MAC, "10.6.212.202".parse().unwrap());
        assert_eq!(f.len(), 60);
        assert_eq!(&f[..14], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0a, 0x58, 0x0a, 0x06, 0xd4, 0xca, 0x08, 0x06]);
        assert_eq!(&f[28..32], &[10, 6, 212, 202]);
        assert_eq!(&f[38..42], &[10, 6, 212, 202]);
        assert_eq!(f[21], 1, "a request");
    }

    #[test]
    fn a_neighbour_advertisement_has_a_right_checksum() {
        let ip: Ipv6Addr = "fd00:10:6::1:10".parse().unwrap();
        let f = unsolicited_na(MAC, ip);
        assert_eq!(f.len(), 14 + 40 + 32);
        assert_eq!(f[14 + 40], 136);
        assert_eq!(f[14 + 40 + 4], 0x20, "override");
        // A message with its checksum in place sums to all ones, so its complement is 0.
        assert_eq!(checksum(ip, ALL_NODES, &f[54..]), 0);
    }
}
