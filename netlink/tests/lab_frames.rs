//! What goes over the wire: announcements, and checksums with and without offload, judged by a packet socket at the other
//! end; and sysctls.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/netns.rs"]
mod common;

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{cable, index, ip_do, mac, name, netns, quickest, run, up};
use model::IfName;
use netlink::{Announced, Errno, Error, LinkChange, LinkRef, Netns, Request, Socket, announce, set_tx_checksum, sysctl};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};

/// For what takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every frame that passes the namespace's links.
fn tap(netns: &Netns) -> OwnedFd {
    let open = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
    let fd = netns.enter(open).unwrap();
    setsockopt(&fd, ReceiveTimeout, &TimeVal::milliseconds(200)).unwrap();
    fd
}

/// The first frame that is wanted, within what a busy machine may need.
fn frame(tap: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut buf = [0; 2048];
    while Instant::now() < until {
        match recv(tap.as_raw_fd(), &mut buf, MsgFlags::empty()) {
            Ok(n) if wanted(&buf[..n]) => return Some(buf[..n].to_vec()),
            Ok(_) | Err(Errno::EAGAIN | Errno::ENETDOWN) => {}
            Err(e) => panic!("{e}"),
        }
    }
    None
}

fn is_arp(f: &[u8]) -> bool {
    f[12..14] == [0x08, 0x06]
}

fn is_na(f: &[u8]) -> bool {
    f[12..14] == [0x86, 0xdd] && f.get(54) == Some(&136) && f[..6] == [0x33, 0x33, 0, 0, 0, 1]
}

const MAC: &str = "0a:58:0a:06:01:0a";

fn pod_with_nic() -> (Netns, Netns, IfName) {
    let (pod, far) = (netns(), netns());
    cable(&pod, "net1", &far, "x");
    ip_do(&pod, &format!("link set net1 address {MAC}"));
    (pod, far, name("net1"))
}

fn give_addresses(pod: &Netns) {
    ip_do(pod, "addr add 10.6.1.10/16 dev net1");
    ip_do(pod, "-6 addr add fd00:10:6::1:10/64 dev net1 nodad");
}

#[test]
fn addresses_of_both_families_are_announced() {
    let (pod, far, dev) = pod_with_nic();
    give_addresses(&pod);
    let tap = tap(&far);
    let ips = ["10.6.1.10", "fd00:10:6::1:10"].map(|i| i.parse::<IpAddr>().unwrap());
    assert_eq!(announce(Some(&pod), &dev, &ips, PATIENCE).unwrap(), Announced::Sent);
    let arp = frame(&tap, is_arp).expect("a gratuitous ARP");
    assert_eq!(&arp[..12], [[0xff; 6], mac(MAC).bytes()].concat(), "to all, from the NIC");
    assert_eq!(&arp[20..22], [0, 1], "RFC 5227: the request form");
    assert_eq!((&arp[28..32], &arp[38..42]), (&[10, 6, 1, 10][..], &[10, 6, 1, 10][..]));
    assert_eq!(arp[22..28], mac(MAC).bytes());
    // The link-local address is announced as well.
    let na = frame(&tap, |f| is_na(f) && f[62] == 0xfd).expect("an unsolicited neighbour advertisement");
    assert_eq!(na[21], 255, "hop limit");
    assert_eq!(na[58] & 0x60, 0x20, "override and not solicited");
    assert_eq!(na[80..86], mac(MAC).bytes());
}

#[test]
fn receivers_take_announcements_in() {
    let (pod, far, dev) = pod_with_nic();
    ip_do(&far, "addr add 10.6.0.2/16 dev x");
    ip_do(&far, "-6 addr add fd00:10:6::2/64 dev x nodad");
    for ip in ["10.6.1.10", "fd00:10:6::1:10"] {
        // A neighbour cache that holds somebody else's address.
        ip_do(&far, &format!("neigh replace {ip} lladdr 0a:00:00:00:00:99 dev x nud stale"));
    }
    let ips = ["10.6.1.10", "fd00:10:6::1:10"].map(|i| i.parse::<IpAddr>().unwrap());
    // The kernel takes no change of an entry within a second of the last one (locktime).
    std::thread::sleep(Duration::from_millis(1100));
    give_addresses(&pod);
    announce(Some(&pod), &dev, &ips, PATIENCE).unwrap();
    let neighbours = || run(&far, "ip", &["neigh", "show", "dev", "x"]).unwrap();
    let until = Instant::now() + PATIENCE;
    while neighbours().matches(MAC).count() != 2 {
        assert!(Instant::now() < until, "{}", neighbours());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_announcement_waits_for_carrier() {
    let (pod, far) = (netns(), netns());
    cable(&pod, "net1", &far, "x");
    ip_do(&pod, "addr add 10.6.1.10/16 dev net1");
    ip_do(&far, "link set x down");
    let tap = tap(&far);
    let late = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            ip_do(&far, "link set x up");
        });
        announce(Some(&pod), &name("net1"), &["10.6.1.10".parse().unwrap()], PATIENCE).unwrap()
    });
    assert_eq!(late, Announced::Sent);
    assert!(frame(&tap, is_arp).is_some());

    ip_do(&far, "link set x down");
    quickest(Duration::from_secs(2), || {
        let never = announce(Some(&pod), &name("net1"), &["10.6.1.10".parse().unwrap()], Duration::from_millis(150)).unwrap();
        assert_eq!(never, Announced::NoCarrier);
    });
    let e = announce(Some(&pod), &name("net9"), &[], Duration::from_millis(150)).unwrap_err();
    assert_eq!(e.to_string(), "link net9 does not exist");
}

/// Whether a UDP datagram from the pod arrives with its checksum complete.
fn checksum_is_complete(pod: &Netns, tap: &OwnedFd) -> bool {
    pod.enter(|| UdpSocket::bind("10.6.1.10:0").unwrap().send_to(b"mooring!", "10.6.0.2:4242").unwrap()).unwrap();
    let f = frame(tap, |f| f[12..14] == [0x08, 0x00] && f[23] == 17 && f[36..38] == 4242u16.to_be_bytes()).expect("the datagram");
    let udp = &f[34..];
    let pseudo = [&f[26..34], &[0, 17], &udp[4..6], udp].concat();
    let mut sum: u32 = pseudo.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

#[test]
fn checksums_are_completed_in_the_pod_when_offload_is_off() {
    let (pod, far, dev) = pod_with_nic();
    ip_do(&pod, "addr add 10.6.1.10/16 dev net1");
    ip_do(&pod, "neigh replace 10.6.0.2 lladdr 0a:00:00:00:00:02 dev net1 nud permanent");
    let tap = tap(&far);
    assert!(!checksum_is_complete(&pod, &tap), "a veth leaves it to the hardware that is not there");
    assert!(set_tx_checksum(Some(&pod), &dev, false).unwrap());
    assert!(checksum_is_complete(&pod, &tap));
    assert!(!set_tx_checksum(Some(&pod), &dev, false).unwrap(), "it was so already");
    assert!(set_tx_checksum(Some(&pod), &dev, true).unwrap());
    assert!(!checksum_is_complete(&pod, &tap));
    let e = set_tx_checksum(Some(&pod), &name("net9"), false).unwrap_err();
    assert_eq!(e.errno(), Some(Errno::ENODEV), "{e}");
}

#[test]
fn sysctls_are_the_namespaces_own() {
    let (a, b) = (netns(), netns());
    cable(&a, "eth0.1", &b, "x");
    let key = "net/ipv4/conf/eth0.1/arp_notify";
    sysctl::write(Some(&a), key, "1").unwrap();
    assert_eq!(sysctl::read(Some(&a), key).unwrap(), "1");
    sysctl::write(Some(&a), "net.ipv4.ip_forward", "1").unwrap();
    assert_eq!(run(&a, "cat", &["/proc/sys/net/ipv4/ip_forward"]).unwrap().trim(), "1");
    assert_eq!(run(&b, "cat", &["/proc/sys/net/ipv4/ip_forward"]).unwrap().trim(), "0");
    let e = sysctl::write(Some(&b), key, "1").unwrap_err();
    assert!(matches!(e, Error::Sysctl { .. }) && e.errno() == Some(Errno::ENOENT), "{e}");
    assert_eq!(sysctl::write(Some(&a), "net.ipv4.ip_forward", "many").unwrap_err().errno(), Some(Errno::EINVAL));
    // Nothing else is touched.
    let socket = Socket::open_in(&a).unwrap();
    socket
        .batch(&[
            Request::SetLink { link: LinkRef::Index(index(&socket, "eth0.1")), change: LinkChange::default() },
            up("eth0.1"),
        ])
        .unwrap();
}
