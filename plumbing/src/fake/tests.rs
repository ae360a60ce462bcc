//! Undo, proven on the fake host for plans of all kinds: whichever step fails, the host is as it was before.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use model::observed::{Look, LookOvs, MacvlanMode, Observed, Scope};
use model::{Cidr, IfAddr, IfName, Route, Rule, Tag};
use planner::step::{Bridge, BridgeSet, Interface, LinkSet, Macvlan, Port, PortSet, Veth};
use planner::{Ns, Plan, Step};
use proptest::prelude::*;

use super::{FakeHost, netns};
use crate::{ApplyError, Host, StepError, Undo, What};

/// A fake host never waits.
fn now<T>(f: impl Future<Output = T>) -> T {
    match pin!(f).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("a fake host waits for nothing"),
    }
}

fn name(s: &str) -> IfName {
    IfName::new(s).unwrap()
}

fn host() -> FakeHost {
    let mac = "0a:00:00:00:00:01".parse().unwrap();
    FakeHost::new().with_nic("eth0", mac).with_nic("eth1", mac).with_ovs().with_bridge("br0", &["eth1"])
}

fn apply(host: &FakeHost, steps: &[Step]) -> Result<(), ApplyError> {
    now(host.apply(Some(&netns("pod")), &Plan { steps: steps.to_vec() }))
}

fn observe(host: &FakeHost) -> Observed {
    let scope = Scope { host: Look::All, pod: Look::All, ovs: LookOvs::All };
    now(host.observe(Some(&netns("pod")), &scope)).unwrap()
}

/// In no order, and without what is new each time.
fn picture(host: &FakeHost) -> Vec<String> {
    let seen = observe(host);
    let mut out = Vec::new();
    for (place, state) in [("host", &seen.host), ("pod", &seen.pod)] {
        out.extend(
            state.links.iter().map(|l| format!("{place} {} {:?} {:?} {} {} {:?}", l.name, l.kind, l.mac, l.mtu, l.up, l.alias)),
        );
        out.extend(state.addrs.iter().map(|a| format!("{place} {a:?}")));
        out.extend(state.routes.iter().map(|r| format!("{place} {r:?}")));
        out.extend(state.rules.iter().map(|r| format!("{place} {r:?}")));
        out.extend(state.neighbours.iter().map(|n| format!("{place} {n:?}")));
    }
    for b in seen.ovs.iter().flat_map(|o| &o.bridges) {
        out.push(format!("{} {:?} {:?}", b.name, b.fail_mode, b.external_ids));
        out.extend(
            b.ports.iter().map(|p| format!("{} {} {:?} {:?} {}", b.name, p.name, p.tag, p.external_ids, p.interfaces.len())),
        );
    }
    out.sort();
    out
}

fn veth() -> Step {
    Step::AddVeth(Veth {
        host_name: name("veth1"),
        pod_name: name("net1"),
        host_mac: None,
        pod_mac: None,
        mtu: None,
        alias: "mooring:1:0123456789abcdef".into(),
    })
}

fn port(bridge: &str, port: &str, tag: Option<i64>) -> Step {
    let interfaces = vec![Interface { name: port.into(), ..Interface::default() }];
    let tag = tag.map(|t| Some(Tag::new(t).unwrap()));
    let external_ids = [("mooring-attachment", "0123456789abcdef"), ("mooring-by", "alone")];
    let external_ids = external_ids.map(|(k, v)| (k.to_owned(), Some(v.to_owned()))).into();
    Step::AddPort {
        bridge: name(bridge),
        port: Port { name: port.into(), interfaces, set: PortSet { tag, external_ids, ..PortSet::default() } },
    }
}

fn del_port(bridge: &str, port_name: &str, tag: Option<i64>) -> Step {
    port(bridge, port_name, tag).inverse().unwrap()
}

fn set_up(ns: Ns, dev: &str, up: bool) -> Step {
    Step::SetLink { ns, name: name(dev), set: LinkSet::up(up), was: LinkSet::up(!up) }
}

#[test]
fn a_refused_step_is_named_and_the_rest_is_undone() {
    let host = host();
    let before = picture(&host);
    let route = Route::new(Cidr::default_v4(), Some("10.7.0.1".parse().unwrap()), name("net1"));
    let steps = [
        veth(),
        set_up(Ns::Pod, "net1", true),
        Step::AddAddr { ns: Ns::Pod, dev: name("net1"), addr: "10.6.1.10/16".parse().unwrap(), nodad: true },
        Step::AddRoute { ns: Ns::Pod, route },
        // The kernel carries this one out all the same.
        Step::AddAddr { ns: Ns::Pod, dev: name("net1"), addr: "10.8.1.10/16".parse().unwrap(), nodad: true },
    ];
    let e = apply(&host, &steps).unwrap_err();
    assert_eq!((e.index, e.undone()), (3, true));
    assert_eq!(
        e.to_string(),
        "failed to add route default via 10.7.0.1 dev net1 (pod): Network is unreachable (ENETUNREACH): Nexthop has invalid gateway; \
         the next hop is in none of the interface's networks, or the interface is down"
    );
    assert_eq!(picture(&host), before);
}

#[test]
fn what_was_so_before_is_not_undone() {
    let host = host();
    let addr = Step::AddAddr { ns: Ns::Host, dev: name("eth0"), addr: "10.0.0.1/24".parse().unwrap(), nodad: true };
    apply(&host, std::slice::from_ref(&addr)).unwrap();
    let before = picture(&host);
    host.fail_step(1);
    let e = apply(&host, &[addr, veth()]).unwrap_err();
    assert!(matches!(*e.cause, StepError::Injected) && matches!(e.undo, Undo::Complete));
    assert_eq!(picture(&host), before);
    assert_eq!(host.applied().len(), 2);
}

#[test]
fn a_port_that_the_switch_cannot_use_is_taken_back() {
    let host = host();
    let before = picture(&host);
    host.fail_interface("veth1", "could not open network device veth1 (No such device)");
    let e = apply(&host, &[veth(), port("br0", "veth1", Some(100))]).unwrap_err();
    assert_eq!(
        e.to_string(),
        "failed to add port veth1 to bridge br0 tag 100: open vswitch could not use interface veth1: could not open network device veth1 \
         (No such device)"
    );
    assert_eq!(picture(&host), before);
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let host = host();
    let before = picture(&host);
    let e = apply(&host, &[port("br0", "veth1", None), port("br9", "veth2", None)]).unwrap_err();
    assert_eq!(e.to_string(), "failed to add port veth2 to bridge br9: bridge br9 does not exist");
    assert_eq!(picture(&host), before);
}

#[test]
fn an_undo_that_fails_says_what_is_left() {
    let host = host();
    host.fail_step(1);
    let e = {
        let steps = [port("br0", "veth1", None), veth()];
        // The switch goes away in the middle.
        host.set_ovs_down(false);
        let plan = Plan { steps: steps.to_vec() };
        let hands = super::Session { world: host.world.clone(), pod: Some("pod".into()) };
        struct DownAfterFirst<'a>(&'a FakeHost, super::Session, std::sync::atomic::AtomicBool);
        impl crate::exec::Hands for DownAfterFirst<'_> {
            async fn carry_out(&self, run: &[Step]) -> Result<Vec<crate::exec::Done>, crate::exec::Failed> {
                let first = !self.2.swap(true, std::sync::atomic::Ordering::Relaxed);
                self.0.set_ovs_down(!first);
                self.1.carry_out(run).await
            }
        }
        now(crate::exec::run(&DownAfterFirst(&host, hands, false.into()), &plan, Some(1))).unwrap_err()
    };
    let Undo::Incomplete(left) = &e.undo else { panic!("{e}") };
    assert_eq!(left.len(), 1);
    assert!(e.to_string().ends_with(
        "and could not take back everything: failed to delete port veth1 from bridge br0: open vswitch does not answer: not connected to \
         the OVSDB server: switched off by a test"
    ));
}

#[test]
fn deleting_what_is_absent_is_done() {
    let host = host();
    let before = picture(&host);
    let del = Step::DelLink { ns: Ns::Host, name: name("veth1") };
    apply(&host, &[del.clone(), del_port("br0", "veth1", None), del]).unwrap();
    assert_eq!(picture(&host), before);
}

#[test]
fn marked_things_are_found() {
    let host = host();
    apply(&host, &[veth(), port("br0", "veth1", None)]).unwrap();
    let mut found: Vec<_> = now(host.find_marked(Some(&netns("pod")))).unwrap().into_iter().map(|m| m.what).collect();
    found.sort_by_key(|w| format!("{w:?}"));
    let link = |ns, n| What::Link { ns, name: name(n) };
    let port = What::Port { bridge: "br0".into(), port: "veth1".into() };
    assert_eq!(found, [link(Ns::Host, "veth1"), link(Ns::Pod, "net1"), port]);
    assert_eq!(*host.changes().borrow(), 5, "four things built, one plan");
}

/// A step that the host as it stands would carry out and could take back; none where this one would not.
fn valid(host: &FakeHost, pick: (u8, u8, u8)) -> Option<Step> {
    let (kind, a, b) = pick;
    let seen = observe(host);
    let pods = ["net0", "net1", "net2"];
    let dev = name(pods[usize::from(a) % 3]);
    let addr = |n: u8| -> IfAddr { format!("10.{}.0.{}/16", n % 3, n % 5 + 1).parse().unwrap() };
    let ovs = seen.ovs.as_ref().unwrap();
    let (br, veth) = (["br0", "br1"][usize::from(a) % 2], format!("veth{}", b % 3));
    Some(match kind % 12 {
        0 => Step::AddVeth(Veth {
            host_name: name(&veth),
            pod_name: dev,
            host_mac: None,
            pod_mac: None,
            mtu: None,
            alias: format!("a{b}"),
        }),
        1 => Step::AddMacvlan(Macvlan {
            name: dev,
            parent: name("eth0"),
            parent_ns: Ns::Host,
            mode: MacvlanMode::Bridge,
            mac: None,
            mtu: None,
            bc_queue_len: None,
            alias: "m".into(),
        }),
        2 => {
            let link = seen.pod.link(&dev)?;
            // The kernel drops the other routes of a link that goes down, and no inverse brings these back.
            if link.up && seen.pod.routes.iter().any(|r| r.dev == dev) {
                return None;
            }
            set_up(Ns::Pod, dev.as_str(), !link.up)
        }
        3 => Step::AddAddr { ns: Ns::Pod, dev, addr: addr(b), nodad: true },
        4 => {
            let addr = seen.pod.addrs_of(&dev).next()?.addr;
            // A route outlives the address whose network its next hop lies in, and could not be made anew without it: whoever
            // plans takes the route away first.
            if seen.pod.routes.iter().any(|r| r.dev == dev && r.gw.is_some_and(|gw| addr.network().contains(gw))) {
                return None;
            }
            Step::DelAddr { ns: Ns::Pod, dev, addr }
        }
        5 => Step::AddRoute {
            ns: Ns::Pod,
            route: Route::new(Cidr::default_v4(), Some(addr(b).ip()), dev).in_table(100 + u32::from(b % 3)),
        },
        6 => Step::DelRoute { ns: Ns::Pod, route: seen.pod.routes.iter().find(|r| r.gw.is_some())?.clone() },
        7 => {
            let rule = Rule { priority: b.into(), from: None, to: None, iif: None, fwmark: None, table: 7, ipv4: true };
            match seen.pod.rules.contains(&rule) {
                true => Step::DelRule { ns: Ns::Pod, rule },
                false => Step::AddRule { ns: Ns::Pod, rule },
            }
        }
        8 => Step::AddBridge(Bridge { name: name("br1"), set: BridgeSet::default() }),
        9 => port(br, &veth, Some(i64::from(b))),
        10 => {
            let (bridge, row) = ovs.find_interface(&veth)?;
            del_port(&bridge.name, &veth, row.tag.map(i64::from))
        }
        _ => {
            let (bridge, row) = ovs.find_interface(&veth)?;
            let tag = |t: Option<u16>| PortSet { tag: Some(t.map(|t| Tag::new(t.into()).unwrap())), ..PortSet::default() };
            Step::SetPort { bridge: name(&bridge.name), name: veth, set: tag(Some(a.into())), was: tag(row.tag) }
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn whichever_step_fails_the_host_is_as_before(prefix in 0usize..8, picks in prop::collection::vec(any::<(u8, u8, u8)>(), 1..60)) {
        // Only steps that succeed, one by one, make up the plan.
        let scratch = host();
        let mut steps = Vec::new();
        for pick in picks {
            steps.extend(valid(&scratch, pick).filter(|s| apply(&scratch, std::slice::from_ref(s)).is_ok()));
        }
        let (before, plan) = steps.split_at(prefix.min(steps.len()));
        for k in 0..plan.len() {
            let host = host();
            apply(&host, before).unwrap();
            let was = picture(&host);
            host.fail_step(k);
            let e = apply(&host, plan).unwrap_err();
            prop_assert!(e.index == k && e.undone(), "{}", e);
            prop_assert_eq!(picture(&host), was, "step {} of\n{}", k + 1, Plan { steps: plan.to_vec() });
        }
        let host = host();
        apply(&host, before).unwrap();
        apply(&host, plan).unwrap();
        prop_assert_eq!(picture(&host), picture(&scratch));
    }
}
