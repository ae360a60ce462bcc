//! What a probe hears from hosts that have an address, that are slow, that probe too, and from none; and announcements that
//! are repeated. The other hosts are the kernel in namespaces of their own, but for the slow ones; the judge of frames is tcpdump.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/netns.rs"]
mod common;

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{cable, ip, ip_do, mac, name, netns, quickest, run};
use netlink::{Announced, Error, Netns, Probe, Probed, announce_again, probe};

const MAC: &str = "0a:58:0a:06:01:0a";
const OTHER: &str = "0a:00:00:00:00:99";
/// For carrier, which is there.
const WAIT: Duration = Duration::from_secs(20);

fn addr(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// A NIC that is up without an address, and the other end of its cable.
fn pod_and_host() -> (Netns, Netns) {
    let (pod, far) = (netns(), netns());
    cable(&pod, "net1", &far, "x");
    ip_do(&pod, &format!("link set net1 address {MAC}"));
    ip_do(&far, &format!("link set x address {OTHER}"));
    (pod, far)
}

fn unused(ips: &[&str]) -> Probe {
    Probe { unused: ips.iter().map(|i| addr(i)).collect(), gateways: vec![] }
}

/// tcpdump on an interface, from when this returns.
struct Tcpdump(Child);

impl Tcpdump {
    fn on(netns: &Netns, dev: &str, filter: &str) -> Self {
        let args = ["-i", dev, "-n", "-e", "-l", "--immediate-mode", filter];
        let child = netns
            .enter(|| Command::new("tcpdump").args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn())
            .unwrap()
            .expect("lab tests need the program tcpdump");
        let mut dump = Self(child);
        // It says so when it listens.
        let mut said = String::new();
        let mut err = std::io::BufReader::new(dump.0.stderr.take().unwrap());
        while !said.contains("listening on") {
            assert!(std::io::BufRead::read_line(&mut err, &mut said).unwrap() > 0, "tcpdump: {said}");
        }
        std::thread::spawn(move || std::io::copy(&mut err, &mut std::io::sink()));
        dump
    }

    /// What it saw, a frame a line, once these are so many, or 10 s later.
    fn lines(mut self, expected: usize) -> Vec<String> {
        let (printed, lines) = std::sync::mpsc::channel();
        let out = std::io::BufReader::new(self.0.stdout.take().unwrap());
        std::thread::spawn(move || std::io::BufRead::lines(out).map_while(Result::ok).try_for_each(|l| printed.send(l)));
        let until = Instant::now() + Duration::from_secs(10);
        let mut seen = Vec::new();
        while seen.len() < expected
            && let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            seen.extend(Some(line).filter(|l| !l.is_empty()));
        }
        // So that what should not be there, and is on its way, is printed.
        std::thread::sleep(Duration::from_millis(100));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), nix::sys::signal::SIGINT).unwrap();
        seen.extend(lines.into_iter().filter(|l| !l.is_empty()));
        self.0.wait().unwrap();
        seen
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_host_that_has_the_address_is_heard_with_its_hardware_address() {
    let (pod, far) = pod_and_host();
    ip_do(&far, "addr add 10.6.1.10/16 dev x");
    ip_do(&far, "-6 addr add fd00:10:6::1:10/64 dev x nodad");
    for ip in ["10.6.1.10", "fd00:10:6::1:10"] {
        // At once, and not when all was asked.
        quickest(Duration::from_millis(150), || {
            let said = probe(Some(&pod), &name("net1"), &unused(&["10.6.9.9", ip]), WAIT).unwrap();
            assert_eq!(said, Probed::InUse(addr(ip), mac(OTHER)));
        });
    }
    // Nobody learnt that the pod asked.
    assert_eq!(run(&far, "ip", &["neigh", "show", "10.6.9.9"]).unwrap(), "");
    assert_eq!(
        run(&pod, "ip", &["-o", "addr", "show", "dev", "net1", "scope", "global"]).unwrap(),
        "",
        "probing gives no address"
    );
}

#[test]
fn three_probes_of_each_address_go_out_and_say_nothing_of_the_sender() {
    let (pod, far) = pod_and_host();
    let ask =
        || assert_eq!(probe(Some(&pod), &name("net1"), &unused(&["10.6.1.10", "fd00:10:6::1:10"]), WAIT).unwrap(), Probed::Clear);
    let dump = Tcpdump::on(&far, "x", "arp or (icmp6 and ip6[40] == 135)");
    ask();
    let lines = dump.lines(6);
    let took = quickest(Duration::from_millis(900), ask);
    assert!(took > Duration::from_millis(600), "{took:?}");
    let arp: Vec<_> = lines.iter().filter(|l| l.contains("ARP")).collect();
    assert_eq!(arp.len(), 3, "{lines:?}");
    assert!(arp.iter().all(|l| l.contains("who-has 10.6.1.10") && l.contains("tell 0.0.0.0") && l.contains(MAC)), "{arp:?}");
    let nd: Vec<_> = lines.iter().filter(|l| l.contains("who has fd00:10:6::1:10")).collect();
    assert_eq!(nd.len(), 3, "{lines:?}");
    assert!(nd.iter().all(|l| l.contains(":: > ff02::1:ff01:10")), "{nd:?}");
}

#[test]
fn of_two_who_probe_at_the_same_time_one_gives_way() {
    let (pod, far) = pod_and_host();
    for ip in ["10.6.1.10", "fd00:10:6::1:10"] {
        let ask = unused(&[ip]);
        // On a busy machine one may be over before the other begins, or both in step: then again.
        let gave_way = (0..20).any(|_| {
            let (a, b) = std::thread::scope(|s| {
                let other = s.spawn(|| probe(Some(&far), &name("x"), &ask, WAIT).unwrap());
                std::thread::sleep(Duration::from_millis(100));
                (probe(Some(&pod), &name("net1"), &ask, WAIT).unwrap(), other.join().unwrap())
            });
            let heard = |said: &Probed, whom: &str| *said == Probed::Clear || *said == Probed::InUse(addr(ip), mac(whom));
            assert!(heard(&a, OTHER) && heard(&b, MAC), "{a:?} {b:?}");
            // Whoever hears the other stops asking, so the other may hear nothing.
            (a, b) == (Probed::Clear, Probed::InUse(addr(ip), mac(MAC)))
        });
        assert!(gave_way, "{ip}");
    }
}

/// A host that answers for 10.6.1.10, but later.
fn answer_after(far: &Netns, delay: Duration) -> std::thread::JoinHandle<()> {
    use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket};
    use std::os::fd::AsRawFd;
    let tap = far
        .enter(|| socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap())
        .unwrap();
    let other = mac(OTHER).bytes();
    std::thread::spawn(move || {
        let mut f = [0; 128];
        loop {
            let (n, from) = recvfrom::<LinkAddr>(tap.as_raw_fd(), &mut f).unwrap();
            if n >= 42 && f[12..14] == [8, 6] && f[38..42] == [10, 6, 1, 10] {
                std::thread::sleep(delay);
                let asker: [u8; 6] = f[6..12].try_into().unwrap();
                let reply =
                    [&asker[..], &other, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &other, &[10, 6, 1, 10], &asker, &[0; 4]].concat();
                // The sender of what was received is the link that it came by.
                let _ = sendto(tap.as_raw_fd(), &reply, &from.unwrap(), MsgFlags::empty());
                return;
            }
        }
    })
}

#[test]
fn an_answer_is_heard_until_the_last_probe_has_had_its_time() {
    for (delay_ms, heard) in [(150, true), (500, true), (900, false)] {
        let want = if heard { Probed::InUse(addr("10.6.1.10"), mac(OTHER)) } else { Probed::Clear };
        // A busy machine may hold up either side.
        let so = (0..20).any(|_| {
            let (pod, far) = pod_and_host();
            let slow = answer_after(&far, Duration::from_millis(delay_ms));
            let said = probe(Some(&pod), &name("net1"), &unused(&["10.6.1.10"]), WAIT).unwrap();
            slow.join().unwrap();
            said == want
        });
        assert!(so, "after {delay_ms} ms never {want:?}");
    }
}

#[test]
fn a_gateway_that_is_there_costs_no_time_and_one_that_is_not_is_named() {
    let (pod, far) = pod_and_host();
    ip_do(&far, "addr add 10.6.0.1/16 dev x");
    ip_do(&far, "-6 addr add fd00:10:6::1/64 dev x nodad");
    let pairs = |v4: &str, v6: &str| Probe {
        unused: vec![],
        gateways: vec![(addr(v4), addr("10.6.1.10")), (addr(v6), addr("fd00:10:6::1:10"))],
    };
    let ask = |v6: &str| probe(Some(&pod), &name("net1"), &pairs("10.6.0.1", v6), WAIT).unwrap();
    quickest(Duration::from_millis(200), || assert_eq!(ask("fd00:10:6::1"), Probed::Clear));
    quickest(Duration::from_secs(2), || assert_eq!(ask("fd00:10:6::2"), Probed::Silent(addr("fd00:10:6::2"))));
}

#[test]
fn without_carrier_nothing_is_asked() {
    let (pod, far) = pod_and_host();
    ip_do(&far, "link set x down");
    let wait = Duration::from_millis(100);
    assert_eq!(probe(Some(&pod), &name("net1"), &unused(&["10.6.1.10"]), wait).unwrap(), Probed::NoCarrier);
    let e = probe(Some(&pod), &name("net9"), &unused(&["10.6.1.10"]), wait).unwrap_err();
    assert!(matches!(e, Error::NoLink(_)), "{e}");
}

#[test]
fn repeated_announcements_leave_the_neighbours_of_the_link_alone() {
    let (pod, far) = pod_and_host();
    ip_do(&pod, "addr add 10.6.1.10/16 dev net1");
    ip_do(&pod, "-6 addr add fd00:10:6::1:10/64 dev net1 nodad");
    ip_do(&pod, "neigh replace 10.6.0.2 lladdr 0a:00:00:00:00:02 dev net1 nud reachable");
    let before = ip(&pod, "neigh show dev net1");
    let dump = Tcpdump::on(&far, "x", "arp or (icmp6 and ip6[40] == 136)");
    let ips = [addr("10.6.1.10"), addr("fd00:10:6::1:10"), addr("10.6.1.11")];
    let began = Instant::now();
    assert_eq!(announce_again(Some(&pod), &name("net1"), &ips).unwrap(), Announced::Sent);
    println!("a repetition took {:?}", began.elapsed());
    let lines = dump.lines(2);
    let count = |what: &str| lines.iter().filter(|l| l.contains(what)).count();
    assert_eq!(lines.len(), 2, "an address that the link has not is not announced: {lines:?}");
    assert_eq!(count("Request who-has 10.6.1.10 tell 10.6.1.10"), 1, "{lines:?}");
    assert_eq!(count("tgt is fd00:10:6::1:10"), 1, "{lines:?}");
    let state = |v: &serde_json::Value| {
        v.as_array().unwrap().iter().map(|n| (n["dst"].clone(), n["lladdr"].clone(), n["state"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(state(&ip(&pod, "neigh show dev net1")), state(&before));
}

#[test]
fn nothing_is_announced_again_that_is_gone() {
    let (pod, far) = pod_and_host();
    let ips = [addr("10.6.1.10")];
    let dump = Tcpdump::on(&far, "x", "arp");
    assert_eq!(announce_again(Some(&pod), &name("net1"), &ips).unwrap(), Announced::NotThere, "no address");
    ip_do(&pod, "addr add 10.6.1.10/16 dev net1");
    ip_do(&pod, "link set net1 down");
    assert_eq!(announce_again(Some(&pod), &name("net1"), &ips).unwrap(), Announced::NotThere, "down");
    ip_do(&pod, "link del net1");
    assert_eq!(announce_again(Some(&pod), &name("net1"), &ips).unwrap(), Announced::NotThere, "no link");
    assert_eq!(dump.lines(0), Vec::<String>::new());
}
