//! Namespaces for tests, and what foreign tools say of them. Each namespace lives as long as its handle: nothing has to be
//! removed, also after a failure.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::process::Command;
use std::time::{Duration, Instant};

use model::{IfName, MacAddr};
use netlink::{LinkChange, LinkRef, Netns, Request, Socket};
use nix::sched::{CloneFlags, unshare};

pub fn name(s: &str) -> IfName {
    IfName::new(s).unwrap()
}

pub fn mac(s: &str) -> MacAddr {
    s.parse().unwrap()
}

/// A new network namespace.
///
/// # Panics
/// Where the test may not make one: a lab test never passes unseen.
pub fn netns() -> Netns {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("cannot make a network namespace ({e}): lab tests need root"))?;
        Netns::current().map_err(|e| e.to_string())
    });
    made.join().unwrap().unwrap_or_else(|e| panic!("{e}"))
}

/// Runs a program in the namespace and gives what it printed.
pub fn run(netns: &Netns, program: &str, args: &[&str]) -> Result<String, String> {
    let out = netns.enter(|| Command::new(program).args(args).output()).unwrap();
    let out = out.unwrap_or_else(|e| panic!("lab tests need the program {program}: {e}"));
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}

/// `ip -d -j ARGS`, the judge of most tests.
pub fn ip(netns: &Netns, args: &str) -> serde_json::Value {
    let args: Vec<&str> = ["-d", "-j"].into_iter().chain(args.split_whitespace()).collect();
    let out = run(netns, "ip", &args).unwrap_or_else(|e| panic!("ip {args:?}: {e}"));
    // With nothing to show it prints nothing.
    if out.trim().is_empty() { serde_json::json!([]) } else { serde_json::from_str(&out).unwrap() }
}

/// Changes something by `ip`.
pub fn ip_do(netns: &Netns, args: &str) {
    let args: Vec<&str> = args.split_whitespace().collect();
    run(netns, "ip", &args).unwrap_or_else(|e| panic!("ip {args:?}: {e}"));
}

/// Does what is quick on an idle machine until one time was quicker than `limit`; gives that time. A busy machine holds up some
/// times, and something slow all of them.
pub fn quickest(limit: Duration, mut work: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let began = Instant::now();
        work();
        best = best.min(began.elapsed());
        if best < limit {
            return best;
        }
    }
    panic!("{best:?} at best of 20 times, and less than {limit:?} is right");
}

/// A pair of NICs with carrier: `a` in one namespace, `b` in the other.
pub fn cable(near: &Netns, a: &str, far: &Netns, b: &str) {
    let (here, there) = (Socket::open_in(near).unwrap(), Socket::open_in(far).unwrap());
    let veth = Request::AddVeth {
        name: name(a),
        mac: None,
        mtu: None,
        peer: name(b),
        peer_mac: None,
        peer_netns: std::os::fd::AsFd::as_fd(far),
    };
    here.batch(&[veth, up(a)]).unwrap();
    there.batch(&[up(b)]).unwrap();
}

/// A NIC with carrier; its other end lives as long as what is returned.
pub fn nic(near: &Netns, dev: &str) -> Netns {
    let far = netns();
    cable(near, dev, &far, "x");
    far
}

pub fn up(link: &str) -> Request<'static> {
    Request::SetLink { link: LinkRef::Name(name(link)), change: LinkChange { up: Some(true), ..LinkChange::default() } }
}

pub fn index(socket: &Socket, link: &str) -> u32 {
    socket.link(&name(link)).unwrap().unwrap_or_else(|| panic!("no link {link}")).index
}
