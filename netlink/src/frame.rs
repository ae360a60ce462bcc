//! Ethernet frames by which hosts of a segment tell and ask who has an address: ARP (RFC 826, RFC 5227) and neighbour discovery
//! (RFC 4861, RFC 4862). Built and read here; who sends them, and why, is not known.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::MacAddr;

const ETH_P_ARP: [u8; 2] = [0x08, 0x06];
const ETH_P_IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, and the lengths of their addresses.
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// What a router may not have passed on: RFC 4861 section 7.1.
const HOPS: u8 = 255;
/// Options: source and target link-layer address.
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
/// Flag of an advertisement: what the receiver has cached is overridden.
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What a frame says about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A host with this hardware address uses it.
    Uses(IpAddr, MacAddr),
    /// A host with this hardware address asks, as one that is about to use it.
    Probes(IpAddr, MacAddr),
}

/// Who has `ip`? Without `from` nobody learns anything of the sender: a probe.
pub(crate) fn question(mac: MacAddr, from: Option<IpAddr>, ip: IpAddr) -> Vec<u8> {
    match (ip, from) {
        (IpAddr::V4(ip), Some(IpAddr::V4(from))) => arp_request(mac, from, ip),
        (IpAddr::V4(ip), _) => arp_request(mac, Ipv4Addr::UNSPECIFIED, ip),
        (IpAddr::V6(ip), Some(IpAddr::V6(from))) => solicitation(mac, from, ip),
        (IpAddr::V6(ip), _) => solicitation(mac, Ipv6Addr::UNSPECIFIED, ip),
    }
}

/// `ip` is at `mac`, to all: the announcement of RFC 5227 section 3 and of RFC 4861 section 7.2.6.
pub(crate) fn announcement(mac: MacAddr, ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => arp_request(mac, ip, ip),
        IpAddr::V6(ip) => {
            let mut body = vec![OVERRIDE, 0, 0, 0];
            body.extend(ip.octets());
            body.extend([TARGET_LINK, 1]);
            body.extend(mac.bytes());
            icmpv6(mac, ip, ALL_NODES, ADVERTISEMENT, &body)
        }
    }
}

/// Where those listen who have `ip`, or are about to (RFC 4291 section 2.7.1).
pub(crate) fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

fn arp_request(mac: MacAddr, from: Ipv4Addr, ip: Ipv4Addr) -> Vec<u8> {
    let mut f = vec![0xff; 6];
    f.extend(mac.bytes());
    f.extend(ETH_P_ARP);
    f.extend(ARP_KIND);
    f.extend([0, ARP_REQUEST]);
    f.extend(mac.bytes());
    f.extend(from.octets());
    f.extend([0; 6]);
    f.extend(ip.octets());
    f
}

fn solicitation(mac: MacAddr, from: Ipv6Addr, ip: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(ip.octets());
    // Nobody shall learn a way to the unspecified address (RFC 4861 section 4.3).
    if !from.is_unspecified() {
        body.extend([SOURCE_LINK, 1]);
        body.extend(mac.bytes());
    }
    icmpv6(mac, from, solicited_node(ip), SOLICITATION, &body)
}

/// To a multicast address, whose frames go to the address that RFC 2464 section 7 derives from it.
fn icmpv6(mac: MacAddr, from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + body.len()).expect("a few dozen bytes");
    let mut message = vec![kind, 0, 0, 0];
    message.extend(body);
    let sum = checksum(&[&from.octets(), &to.octets(), &u32::from(len).to_be_bytes(), &[0, 0, 0, ICMPV6], &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let [.., a, b, c, d] = to.octets();
    let mut f = vec![0x33, 0x33, a, b, c, d];
    f.extend(mac.bytes());
    f.extend(ETH_P_IPV6);
    f.extend([0x60, 0, 0, 0]);
    f.extend(len.to_be_bytes());
    f.extend([ICMPV6, HOPS]);
    f.extend(from.octets());
    f.extend(to.octets());
    f.extend(message);
    f
}

/// RFC 1071, over parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|p| p.chunks_exact(2)).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// What a frame says; none for frames of other kinds and for malformed ones. Checksums are not looked at: between namespaces of
/// one machine they are left to hardware that is not there.
pub(crate) fn read(frame: &[u8]) -> Option<Heard> {
    let (head, rest) = frame.split_first_chunk::<14>()?;
    let [_, _, _, _, _, _, source @ .., k0, k1] = *head;
    match [k0, k1] {
        ETH_P_ARP => read_arp(rest),
        ETH_P_IPV6 => read_icmpv6(rest, MacAddr::from_bytes(source)),
        _ => None,
    }
}

fn read_arp(f: &[u8]) -> Option<Heard> {
    let arp = f.first_chunk::<28>()?;
    if arp[..6] != ARP_KIND || arp[6] != 0 || !matches!(arp[7], ARP_REQUEST | ARP_REPLY) {
        return None;
    }
    let ip = |at: usize| Ipv4Addr::new(arp[at], arp[at + 1], arp[at + 2], arp[at + 3]);
    let mac = MacAddr::from_bytes([arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]]);
    let (sender, target) = (ip(14), ip(24));
    match (sender.is_unspecified(), arp[7]) {
        (false, _) => Some(Heard::Uses(sender.into(), mac)),
        (true, ARP_REQUEST) => Some(Heard::Probes(target.into(), mac)),
        _ => None,
    }
}

fn read_icmpv6(f: &[u8], source: MacAddr) -> Option<Heard> {
    let (ip, message) = f.split_first_chunk::<40>()?;
    let len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let message = message.get(..len)?;
    if ip[0] >> 4 != 6 || ip[6] != ICMPV6 || ip[7] != HOPS {
        return None;
    }
    let (icmp, options) = message.split_first_chunk::<24>()?;
    let target = Ipv6Addr::from(*icmp.last_chunk::<16>()?);
    match (icmp[0], icmp[1]) {
        (ADVERTISEMENT, 0) => Some(Heard::Uses(target.into(), link_option(options).unwrap_or(source))),
        // With a source it is only somebody who looks for the address (RFC 4862 section 5.4.3).
        (SOLICITATION, 0) if ip[8..24] == [0; 16] => Some(Heard::Probes(target.into(), source)),
        _ => None,
    }
}

/// The target's link-layer address, where an advertisement has it.
fn link_option(mut options: &[u8]) -> Option<MacAddr> {
    loop {
        let (kind, len) = (*options.first()?, usize::from(*options.get(1)?) * 8);
        let option = options.get(..len).filter(|o| !o.is_empty())?;
        if kind == TARGET_LINK {
            return option.get(2..8).and_then(|m| m.try_into().ok()).map(MacAddr::from_bytes);
        }
        options = &options[len..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ME: MacAddr = MacAddr::from_bytes([0x0a, 0x58, 0x0a, 0x06, 0x01, 0x0a]);

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn hex(s: &str) -> Vec<u8> {
        let digits: Vec<u8> = s.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn an_arp_probe_tells_nothing_of_its_sender_but_the_hardware_address() {
        let want = "ffffffffffff 0a580a06010a 0806 0001 0800 06 04 0001 0a580a06010a 00000000 000000000000 0a06010a";
        assert_eq!(question(ME, None, ip("10.6.1.10")), hex(want));
        let announced = "ffffffffffff 0a580a06010a 0806 0001 0800 06 04 0001 0a580a06010a 0a06010a 000000000000 0a06010a";
        assert_eq!(announcement(ME, ip("10.6.1.10")), hex(announced));
    }

    #[test]
    fn a_solicitation_goes_to_the_solicited_node_address() {
        let f = question(ME, None, ip("fd00:10:6::12:3456"));
        assert_eq!(f[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!((f[20], f[21]), (ICMPV6, 255));
        assert_eq!(f[22..38], [0; 16]);
        assert_eq!(f[38..54], "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(f.len(), 54 + 24, "a probe has no option");
        assert_eq!(question(ME, Some(ip("fd00::1")), ip("fd00::2")).len(), 54 + 32);
    }

    #[test]
    fn checksums_are_right() {
        // Whoever adds up a message with its checksum gets all ones (RFC 1071 section 1).
        for f in
            [question(ME, None, ip("fd00::1")), question(ME, Some(ip("fd00::3")), ip("fd00::1")), announcement(ME, ip("fd00::1"))]
        {
            let len = (f.len() - 54) as u32;
            assert_eq!(checksum(&[&f[22..54], &len.to_be_bytes(), &[0, 0, 0, ICMPV6], &f[54..]]), 0);
        }
    }

    #[test]
    fn frames_say_what_they_were_made_to_say() {
        for a in ["10.6.1.10", "fd00:10:6::1:10"] {
            let a = ip(a);
            assert_eq!(read(&question(ME, None, a)), Some(Heard::Probes(a, ME)));
            assert_eq!(read(&announcement(ME, a)), Some(Heard::Uses(a, ME)));
        }
        assert_eq!(read(&question(ME, Some(ip("10.6.1.1")), ip("10.6.1.10"))), Some(Heard::Uses(ip("10.6.1.1"), ME)));
        assert_eq!(read(&question(ME, Some(ip("fd00::1")), ip("fd00::2"))), None, "somebody looks for fd00::2");
    }

    #[test]
    fn a_reply_that_a_switch_padded_is_read() {
        let mut reply = hex("0a580a06010a 020000000099 0806 0001 0800 06 04 0002 020000000099 0a06010a 0a580a06010a 00000000");
        reply.resize(60, 0);
        assert_eq!(read(&reply), Some(Heard::Uses(ip("10.6.1.10"), "02:00:00:00:00:99".parse().unwrap())));
    }

    #[test]
    fn what_came_through_a_router_is_not_believed() {
        let mut f = announcement(ME, ip("fd00::1"));
        f[21] = 254;
        assert_eq!(read(&f), None);
    }

    #[test]
    fn an_advertisement_without_the_option_is_its_senders() {
        let mut f = announcement(ME, ip("fd00::1"));
        f.truncate(f.len() - 8);
        f[19] -= 8;
        assert_eq!(read(&f), Some(Heard::Uses(ip("fd00::1"), ME)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut f in prop::collection::vec(any::<u8>(), 0..160), kind in 0..3usize, icmp in 134..138u8) {
            // Most of the random ones would end at the type.
            if f.len() > 54 && kind > 0 {
                f[12..14].copy_from_slice(if kind == 1 { &ETH_P_ARP } else { &ETH_P_IPV6 });
                if kind == 2 {
                    (f[14], f[18], f[20], f[21], f[54]) = (0x60, 0, ICMPV6, 255, icmp);
                }
            }
            let _ = read(&f);
        }
    }
}
